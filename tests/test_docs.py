"""The README and the site: every block runs on a small budget, in the order of its page; links and names are complete."""

import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import unquote, urlsplit

import pytest
import torch as th

from sb3_exdm import api, diffusion, envs, finetuning, plots, policies, recipes, rewards
from sb3_exdm.cli import main
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.rewards import REWARDS
from sb3_exdm.runs.envs import ENV_FACTORIES
from sb3_exdm.runs.hyperparams import PROFILES
from tests.conftest import tiny_pretrain
from tests.hub_stand_in import logged_in

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)

PLACES = {
    "FINETUNE_ALGORITHMS": ["sb3_exdm.finetuning.gaussian.FINETUNE_ALGORITHMS"],
    "MAZE_NAMES": ["sb3_exdm.envs.maze2d.layout.MAZE_NAMES"],
    "OPERATORS": ["sb3_exdm.finetuning.operators.base.OPERATORS"],
    "REWARDS": ["sb3_exdm.rewards.registry.REWARDS"],
    "TASKS": ["sb3_exdm.envs.urlb.TASKS"],
    "VECTORIZED_DOMAINS": ["sb3_exdm.envs.urlb.VECTORIZED_DOMAINS"],
    "register_env_factory": ["sb3_exdm.runs.envs.register_env_factory"],
}
"""Where names are documented that do not know their module."""

SMALLER = [
    (r"\.learn\([\d_]+", ".learn(128"),
    (r'PPO\("MlpPolicy", (\w+)(?=[,)])', r'PPO("MlpPolicy", \1, n_steps=32'),
    (r"(n_steps=32.*), n_steps=\d+", r"\1"),
    (r"total_timesteps=[\d_]+", "total_timesteps=240"),
    (r"gradient_steps=100\b", "gradient_steps=20"),
    (r"([pP]retrain\([^)]*?), [\d_]+([,)])", r"\1, 400\2"),
    (r"(finetune\([^)]*?), [\d_]+([,)])", r"\1, 240\2"),
    (r"([pP]retrain\([^()]*)\)", r"\1, policy_steps=20)"),
    (r"(LogCallback\([\w.]+\))\)", r"\1, policy_steps=20)"),
    (r"(finetune\([^()]*)\)", r"\1, distill_steps=20, n_eval_episodes=2, offline_updates=20)"),
    (r"(?<!\w)evaluate\((\"[^\"]*\")\)", r"evaluate(\1, n_episodes=2)"),
    (r"--env (URLB\S+)", "--env \\1 --env-kwargs '{\"max_episode_steps\": 20}'"),
    (r"--steps \d+", "--steps 400"),
    (r"--episodes \d+", "--episodes 2"),
    (r"(URLB/.*)n_episodes=\d+", r"\1n_episodes=1"),
    (r"exdm pretrain", "exdm pretrain --policy-steps 20 --quiet"),
    (r"exdm finetune", "exdm finetune --distill-steps 20 --n-eval-episodes 2 --offline-updates 20 --quiet"),
    (r"(exdm benchmark .*)--rewards [\w ]+ --seeds [\d-]+", r"\1--rewards zero --seeds 1"),
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


def trackers(monkeypatch):
    """Stand-ins for experiment trackers, which need accounts and servers."""
    for name in ("wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    return nullcontext()


def shared_run(monkeypatch):
    """A run to share, and stand-ins for the places that it is shared in."""
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("minari")
    tiny_pretrain(300, out=Path("runs/demo"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path("datasets").absolute()))
    return logged_in(monkeypatch)


PREPARED: dict[str, Callable[..., Any]] = {"logging": trackers, "sharing": shared_run}
"""Preparations of the pages whose blocks need some."""


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
    with PREPARED.get(page.stem, nullcontext)(monkeypatch):
        assert run_blocks(page)


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 125


def test_links_of_the_readme():
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README.read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


class Page(HTMLParser):
    """Ids, links, and files that a page of the site loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id") or "")
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag == "link" and attributes.get("rel") != "canonical":
            self.loaded.append(attributes["href"])
        elif attributes.get("src"):
            self.loaded.append(attributes["src"])


def documented_names(inventory: Path) -> set[str]:
    """Names in the inventory of the site."""
    _, _, _, _, content = inventory.read_bytes().split(b"\n", 4)
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


@pytest.mark.slow
def test_site():
    """The site builds without warnings, offline, documents every public name, and its links, anchors and images exist."""
    pytest.importorskip("sphinx")
    html = ROOT / "docs" / "_build" / "html"  # that of make docs, which leaves little to build
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        html.parent / "doctrees",
        html.parents[1],
        html,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    names = documented_names(html / "objects.inv")
    for package in (api, diffusion, envs, finetuning, plots, policies, recipes, rewards):
        for name in package.__all__:
            value = getattr(package, name)
            module, qualified = getattr(value, "__module__", ""), getattr(value, "__qualname__", name)
            places = {
                f"{module}.{qualified}",
                f"{package.__name__}.{name}",
                getattr(value, "__name__", ""),
                *PLACES.get(name, ()),
            }
            assert places & names, f"{package.__name__}.{name} is on no page"

    pages = {path: Page(path) for path in html.rglob("*.html")}
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                assert link not in page.loaded, f"{path.name} loads {link} from the network"
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.exists(), f"{path.relative_to(html)} links to {link}"
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].ids, f"{path.relative_to(html)} links to {link}"
