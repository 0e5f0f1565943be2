"""Experiments that are sweeps: all can be imported; the tuning of rewards; initial policies and their crossroads."""

import importlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env

from examples.experiments import expressiveness, reward_tuning
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.folder import RunFolder

FOLDER = Path(__file__).parent.parent / "examples" / "experiments"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_experiment_can_be_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # where a script finds those beside it
    known = set(REWARDS)
    assert importlib.import_module(f"examples.experiments.{name}").__doc__
    for reward in set(REWARDS) - known:  # other tests are about the rewards of the library
        REWARDS.unregister(reward)


def test_tuning_gives_every_reward_the_same_number_of_settings(tmp_path):
    runs = reward_tuning.RewardTuning.make(out=tmp_path, seeds=(0,)).plan()
    settings = [(run.config.reward, run.config.reward_transform, str(run.config.reward_kwargs)) for run in runs]
    assert len(set(settings)) == len(runs)
    assert {name: [reward for reward, *_ in settings].count(name) for name in reward_tuning.CANDIDATES} == dict.fromkeys(
        reward_tuning.CANDIDATES, 9
    )


@pytest.fixture
def crossroads(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("crossroads")


def test_api(crossroads):
    check_env(gym.make("Crossroads-v0").unwrapped, skip_render_check=True)


def walk(env, targets):
    """Go straight from target to target; return the sides that were seen, the sum of rewards and how the episode ended."""
    observation, total = env.reset(seed=None)[0], 0.0
    sides = {observation[2]}
    for target in targets:
        while np.linalg.norm(observation[:2] - target) > 0.3:
            step = np.clip(np.array(target) - observation[:2], -0.9, 0.9)
            observation, reward, terminated, truncated, info = env.step(step)
            total += reward
            sides.add(observation[2])
            if terminated or truncated:
                return sides, total, terminated, info["is_success"]
    return sides, total, False, False


def test_the_side_is_shown_at_the_crossroads_and_decides_the_goal(crossroads):
    env = gym.make("Crossroads-v0")
    env.reset(seed=0)
    right = [(0, -2), (4, -2), (4, -4), (6, -4), (6, -6)]
    outcomes = [walk(env, right) for _ in range(20)]
    shown = [max(sides, key=abs) for sides, *_ in outcomes]
    assert {-1.0, 1.0} == set(shown) and all(0.0 in sides and len(sides) == 2 for sides, *_ in outcomes)
    for side, (_, total, terminated, is_success) in zip(shown, outcomes, strict=True):
        assert (total, terminated, is_success) == ((1.0, True, True) if side == 1.0 else (0.0, False, False))


def test_nothing_is_shown_before(crossroads):
    env = gym.make("Crossroads-v0")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        while np.linalg.norm(observation[:2] - crossroads.CROSSROADS) > crossroads.SIGHT:
            assert observation[2] == 0.0
            observation, *_ = env.step(np.array([0.0, -0.1]))
        assert abs(observation[2]) == 1.0


def test_plan(crossroads, tmp_path):
    benchmark = expressiveness.Expressiveness.make(out=tmp_path / "out", pretrained=tmp_path / "pre", seeds=(10, 11))
    runs = benchmark.plan()
    assert len({run.folder for run in runs}) == len(runs) == 2 * 5 * (1 + 3 * 2)
    explored = {run.folder for run in runs if run.requires is None}
    assert all(run.requires in explored for run in runs if run.folder not in explored)
    with pytest.raises(ValueError, match="Unknown task 'SquareQ'"):
        expressiveness.Expressiveness.make(tasks=("SquareQ",)).validate()


def test_report(crossroads, tmp_path):
    """With run folders as far as the report looks into them."""
    benchmark = expressiveness.Expressiveness.make(
        out=tmp_path / "out", pretrained=tmp_path / "pre", seeds=(10, 11), tasks=("Crossroads",), report_only=True
    )
    finetuned = [run for run in benchmark.plan() if run.requires is not None]
    for run in finetuned:
        folder = RunFolder(run.folder)
        folder.create({"command": "finetune", "env_id": "Crossroads-v0"})
        rate = 1.0 if run.config.policy == "diffusion" else 0.5 * run.config.correlation
        folder.path.joinpath("progress.csv").write_text(f"timesteps,success_rate\n0,0\n10000,{rate}\n20000,{rate}\n")
    report = "\n\n".join(benchmark.report(finetuned))
    figures = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert len(figures) == 12 and set(figures["task"]) == {"Crossroads"}
    areas = figures.groupby("method")["area"].mean()
    assert areas["diffusion, 0"] == areas["diffusion, 0.6"] == pytest.approx(0.75)
    assert areas["last Gaussian, 0.6"] == areas["cloned Gaussian, 0.6"] == pytest.approx(0.225)
    assert "| last Gaussian, 0 − diffusion, 0.6 " in report and "| cloned Gaussian, 0, 0.8 " in report
