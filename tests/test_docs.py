"""The README and the pages of the site: every block runs, on a small budget, in the order of its page."""

import re
import shlex
from pathlib import Path

import pytest
import torch as th

from sb3_exdm.cli import main
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.rewards import REWARDS
from sb3_exdm.runs.envs import ENV_FACTORIES
from sb3_exdm.runs.hyperparams import PROFILES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)

SMALLER = [
    (r"\.learn\([\d_]+", ".learn(128"),
    (r'PPO\("MlpPolicy", (\w+)', r'PPO("MlpPolicy", \1, n_steps=32'),
    (r"(n_steps=32.*), n_steps=\d+", r"\1"),
    (r"total_timesteps=[\d_]+", "total_timesteps=240"),
    (r"gradient_steps=100\b", "gradient_steps=20"),
    (r"([pP]retrain\([^)]*?), [\d_]+([,)])", r"\1, 400\2"),
    (r"(finetune\([^)]*?), [\d_]+([,)])", r"\1, 240\2"),
    (r"([pP]retrain\([^()]*)\)", r"\1, policy_steps=20)"),
    (r"(finetune\([^()]*)\)", r"\1, distill_steps=20, n_eval_episodes=2, offline_updates=20)"),
    (r"(?<!\w)evaluate\((\"[^\"]*\")\)", r"evaluate(\1, n_episodes=2)"),
    (r"--steps \d+", "--steps 400"),
    (r"--episodes \d+", "--episodes 2"),
    (r"exdm pretrain", "exdm pretrain --policy-steps 20 --quiet"),
    (r"exdm finetune", "exdm finetune --distill-steps 20 --n-eval-episodes 2 --offline-updates 20 --quiet"),
    (r"exdm clone(.*)--steps \d+", r"exdm clone\1--steps 20"),
]
"""Substitutions that reduce the budget of a block."""


def smaller(block: str) -> str:
    for pattern, replacement in SMALLER:
        block = re.sub(pattern, replacement, block)
    return block


def run_blocks(page: Path) -> int:
    """Execute Python blocks, and the commands of the others, in one namespace; return their number."""
    names: dict = {"__name__": "page"}
    executed = 0
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(smaller(block), page.name, "exec"), names)
            executed += 1
        elif language in ("", "bash"):
            for line in block.splitlines():
                if line.startswith("exdm "):
                    main(shlex.split(smaller(line))[1:])
                    executed += 1
    return executed


@pytest.fixture
def restored_registries():
    """Forget what the blocks of a page register."""
    known = [(registry, set(registry)) for registry in (REWARDS, OPERATORS, ENV_FACTORIES)]
    profiles = set(PROFILES)
    yield
    for registry, names in known:
        for name in set(registry) - names:
            registry.unregister(name)
    for name in set(PROFILES) - profiles:
        del PROFILES[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore:Fine-tuning saw no reward signal")
def test_every_block_runs(page, tmp_path, monkeypatch, restored_registries):
    monkeypatch.chdir(tmp_path)
    th.set_num_threads(1)
    assert run_blocks(page)


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 125


def test_links_of_the_readme():
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README.read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link
