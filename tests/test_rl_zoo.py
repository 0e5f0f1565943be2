"""The hyper-parameter files for rl-zoo3, run from its command line."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3 import SAC

import sb3_exdm
from sb3_exdm.recipes import resolve
from sb3_exdm.runs.hyperparams import to_plain
from tests.conftest import tiny_pretrain

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "rl_zoo"
MAZE = "Maze2d-SquareA-v0"


def settings(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["hyperparams"][MAZE]


def test_exploration_has_the_settings_of_the_library():
    found = settings("explore")
    own = resolve(sb3_exdm.PretrainConfig(env_id=MAZE, total_timesteps=100_000))
    assert {key: to_plain(found[key]) for key in own.algo_kwargs} == own.algo_kwargs
    assert found["n_envs"] == own.n_envs
    assert found["replay_buffer_class"] is sb3_exdm.ScoreRewardReplayBuffer


def test_fine_tuning_has_the_settings_of_the_library():
    found = settings("finetune")
    own = resolve(sb3_exdm.FinetuneConfig(env_id=MAZE, total_timesteps=20_000))
    assert {key: found[key] for key in own.algo_kwargs} == own.algo_kwargs
    assert found["n_envs"] == own.n_envs


def zoo(folder, name, *flags):
    """Run the zoo for few steps; return the path of its model."""
    pytest.importorskip("rl_zoo3")
    arguments = ["--algo", "sac", "--env", MAZE, "--gym-packages", "sb3_exdm", "--conf-file", EXAMPLES / f"{name}.py"]
    quick = ["--eval-freq", "-1", "--num-threads", "1", "--seed", "0", "--device", "cpu", "--log-folder", folder]
    done = subprocess.run(
        [sys.executable, "-m", "rl_zoo3.train", *arguments, *quick, *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return folder / "sac" / f"{MAZE}_1" / f"{MAZE}.zip", done.stdout


@pytest.mark.long
def test_exploration(tmp_path):
    path, printed = zoo(tmp_path, "explore", "--n-timesteps", "800", "--hyperparams", "learning_starts:400")
    assert "intrinsic_rew_mean" in printed and "score_loss" in printed
    assert SAC.load(path, device="cpu").num_timesteps == 800


@pytest.mark.long
def test_fine_tuning(tmp_path):
    tiny_pretrain(600, out=tmp_path / "explored")
    kwargs = f"policy_kwargs:dict(pretrained={str(tmp_path / 'explored')!r})"
    path, printed = zoo(tmp_path, "finetune", "--n-timesteps", "400", "--hyperparams", "learning_starts:200", kwargs)
    assert path.is_file() and "success_rate" in printed
