"""The example scripts, run with few steps."""

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sb3_exdm
from examples.experiments import mountain_car
from sb3_exdm.rewards import REWARDS

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {
    "animate_maze": ["--steps", "400", "--frames", "3"],
    "diffusion_policy": ["--pretrain-steps", "400", "--steps", "160"],
    "dmc_walker": ["--pretrain-steps", "300", "--steps", "160", "--no-video"],
    "finetune_maze": ["--pretrain-steps", "400", "--steps", "160"],
    "half_cheetah": ["--steps", "300"],
    "maze": ["--steps", "600"],
    "mountain_car": ["--steps", "240"],
    "own_reward": ["--steps", "600"],
    "point_maze": ["--steps", "300"],
    "replay_buffer": ["--steps", "300"],
    "wrap_any_env": ["--steps", "256"],
}


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick_recipes(monkeypatch, tmp_path):
    """Few gradient steps before and after the environment steps, and short episodes, where an example has the defaults."""
    monkeypatch.chdir(tmp_path)
    quick = dict(offline_updates=20, critic_updates=20, distill_steps=20, n_eval_episodes=1)
    quick["env_kwargs"] = dict(max_episode_steps=50)
    monkeypatch.setattr(sb3_exdm, "finetune", partial(sb3_exdm.finetune, **quick))
    pretrain = sb3_exdm.pretrain
    monkeypatch.setattr(sb3_exdm, "pretrain", lambda *args, **kwargs: pretrain(*args, **{"policy_steps": 20, **kwargs}))
    yield
    REWARDS.unregister("kde")


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_example(name, capsys):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 75
    result = load_example(name).main(ARGUMENTS[name])
    assert np.isfinite(list(result.values()) if isinstance(result, dict) else result).all()
    assert capsys.readouterr().out


def test_own_reward_is_the_density_of_its_kernels():
    reward_class = load_example("own_reward").KernelDensityReward
    space = sb3_exdm.envs.Maze2dSB3VecEnv("SquareA", 1).observation_space
    reward = reward_class(space, bandwidth=0.5, seed=0, device="cpu")
    states = np.random.default_rng(0).uniform(-1, 1, (256, 2)).astype(np.float32)
    reward.fit(states, gradient_steps=300)
    memory = reward.memory.numpy()
    whitened = reward.whitening.standardize(reward._to_tensors(states[:5], None)[0]).numpy()
    squares = ((whitened[:, None] - memory[None]) ** 2).sum(axis=2)  # (5, 1024)
    np.testing.assert_allclose(reward.score(states[:5]), -np.log(np.exp(-squares / (2 * 0.5**2)).sum(axis=1)), rtol=1e-3)


def test_own_reward_is_saved_and_loaded(tmp_path):
    load_example("own_reward")
    space = sb3_exdm.envs.Maze2dSB3VecEnv("SquareA", 1).observation_space
    reward = sb3_exdm.make_reward("kde", space, bandwidth=0.3)
    states = np.random.default_rng(0).uniform(-1, 1, (256, 2)).astype(np.float32)
    reward.fit(states, gradient_steps=10)
    reward.save(tmp_path / "reward.safetensors")
    loaded = sb3_exdm.load_reward(tmp_path / "reward.safetensors")
    assert loaded.bandwidth == 0.3
    np.testing.assert_array_equal(loaded.reward(states), reward.reward(states))


@pytest.mark.slow
def test_mountain_car_experiment(tmp_path):
    curves = mountain_car.main(["--steps", "120", "--eval-freq", "120", "--seeds", "0", "--out", str(tmp_path)])
    assert curves[["method", "timesteps"]].values.tolist() == [["SAC + intrinsic reward", 120], ["SAC", 120]]
    assert curves.mean_return.between(-100, 100).all()
    assert len((tmp_path / "mountain_car.csv").read_text().splitlines()) == 3
    assert (tmp_path / "mountain_car.png").stat().st_size > 10_000


def test_mountain_car_is_solved_from_the_first_evaluation_above_the_threshold():
    curves = pd.DataFrame(dict(method="SAC", seed=[0, 0, 0, 1, 1], timesteps=[1, 2, 3, 1, 2], mean_return=[0, 91, 92, 90, 0]))
    solved = mountain_car.solved_after(curves)
    assert solved["SAC", 0] == 2
    assert np.isnan(solved["SAC", 1])
