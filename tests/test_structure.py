"""The structure of the package: imports point one way, and the public names are complete."""

import ast
from pathlib import Path

import pytest

import sb3_exdm
from sb3_exdm import api

ROOT = Path(__file__).parents[1]
ORDER = [
    *("doctor", "envs", "common", "metrics", "diffusion", "rewards", "exploration", "algorithms", "policies", "finetuning"),
    *("runs", "plots", "recipes", "benchmark", "sharing", "api", "cli"),
]
"""A package imports only from itself and from those before it."""


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} if node.module != "sb3_exdm" else {f"sb3_exdm.{name.name}" for name in node.names}
    return found


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "envs" else parts[1]


FILES = sorted([*ROOT.glob("sb3_exdm/**/*.py"), *ROOT.glob("envs/**/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_order(path):
    own = package_of(path)
    if own in ("__init__", "__main__"):
        return
    for module in imported_modules(path):
        if module.startswith("sb3_exdm."):
            other = module.split(".")[1]
            assert other in ORDER, f"{path} imports {module}"
            assert ORDER.index(other) <= ORDER.index(own), f"{path} imports {module} against the order"


def test_every_package_has_a_place_in_the_order():
    folders = {path.parent.name for path in ROOT.glob("sb3_exdm/*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("sb3_exdm/*.py")} - {"__init__", "__main__"}
    assert folders | modules | {"envs"} == set(ORDER)


def test_public_names_exist_and_are_documented():
    assert len(set(api.__all__)) == len(api.__all__)
    for name in api.__all__:
        value = getattr(sb3_exdm, name)
        assert name in ("OPERATORS", "REWARDS", "register_env_factory") or value.__doc__, name
