"""The README: every block runs, on a small budget, in one process and one folder, in the order of the page."""

import re
import shlex
from pathlib import Path

import pytest
import torch as th

from sb3_exdm.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)

SMALLER = [
    (r"\.learn\([\d_]+", ".learn(300"),
    (r"(Maze2d-\w+-v0\"), ([\d_]+)", r"\1, 600"),
    (r"(pretrain\([^)]*)\)", r"\1, policy_steps=20)"),
    (r"(finetune\([^)]*)\)", r"\1, distill_steps=20, n_eval_episodes=2)"),
    (r"evaluate\((\"[^\"]*\")\)", r"evaluate(\1, n_episodes=2)"),
    (r"--steps \d+", "--steps 600"),
    (r"exdm pretrain", "exdm pretrain --policy-steps 20 --quiet"),
    (r"exdm finetune", "exdm finetune --distill-steps 20 --n-eval-episodes 2 --quiet"),
]
"""Substitutions that reduce the budget of a block."""


def smaller(block: str) -> str:
    for pattern, replacement in SMALLER:
        block = re.sub(pattern, replacement, block)
    return block


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Fine-tuning saw no reward signal")
def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    th.set_num_threads(1)
    names: dict = {}
    executed = 0
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(smaller(block), "README.md", "exec"), names)
            executed += 1
        for line in block.splitlines():
            if line.startswith("exdm "):
                main(shlex.split(smaller(line))[1:])
                executed += 1
    assert executed >= 10
    assert (tmp_path / "runs" / "tree-goal" / "summary.json").is_file()


def test_length_and_links():
    assert len(README.splitlines()) <= 160
    for link in re.findall(r"\]\((docs/[^)#]+)", README):
        assert (Path(__file__).parents[1] / link).is_file(), link
