"""The recipe, the run folder, and the examples, as a user runs them."""

import importlib.util
import json
import signal
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import tiny_pretrain
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

import sb3_exdm
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.envs import Maze2dSB3VecEnv
from sb3_exdm.exploration.callbacks import ExplorationCallback
from sb3_exdm.plots import plot_runs
from sb3_exdm.runs.envs import EnvSource

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_run_folder_holds_everything(tmp_path):
    run = tiny_pretrain(2400, out=tmp_path / "run", checkpoint_freq=1000)
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        *("config.json", "summary.json", "progress.csv", "transitions.npz", "tensorboard", "checkpoints"),
        *("model.safetensors", "reward.safetensors", "policy.safetensors", "coverage.png", "visits.png", "reward.png"),
    }
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"2000", "2400", "replay.rows", "transitions.rows"}
    progress = np.genfromtxt(run.path / "progress.csv", delimiter=",", names=True)
    assert progress["timesteps"].tolist() == [1000, 2000, 2400]
    assert progress["coverage"][-1] == pytest.approx(run.summary["coverage"], rel=1e-4)
    summary = json.loads((run.path / "summary.json").read_text())
    assert {"env_id", "algo", "reward", "seed", "timesteps", "seconds", "steps_per_second", "versions"} <= summary.keys()
    folder = sb3_exdm.RunFolder(run.path)
    transitions = folder.transitions()
    assert len(transitions["rewards"]) == 2400 and transitions["truncated"].sum() == 2400 // 50
    assert sb3_exdm.state_coverage(transitions["next_observations"], "SquareA") == pytest.approx(
        run.summary["coverage"], abs=2e-3
    )


@pytest.mark.slow
def test_loaded_models_are_the_trained_ones(tmp_path):
    run = tiny_pretrain(out=tmp_path / "run")
    folder = sb3_exdm.RunFolder(run.path)
    obs = run.path and folder.transitions()["next_observations"][:50].astype(np.float64)
    model = folder.load_model(device="cpu")
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], run.model.predict(obs, deterministic=True)[0])
    assert th.equal(model.log_ent_coef, run.model.log_ent_coef) and model.num_timesteps == 600
    ours, theirs = model.critic.optimizer.state_dict()["state"], run.model.critic.optimizer.state_dict()["state"]
    assert all(th.equal(ours[key]["exp_avg"], theirs[key]["exp_avg"]) for key in theirs)
    np.testing.assert_array_equal(folder.load_reward(device="cpu").score(obs), run.reward_model.score(obs))
    # It can be trained further.
    folder.load_model(EnvSource.of("Maze2d-SquareA-v0").make_vec(8, 1), device="cpu").learn(200)


@pytest.mark.slow
def test_transitions_are_those_of_the_environment(tmp_path):
    """The recorded moves, fed to a fresh maze, lead where they led; also across the ends of episodes."""
    arrays = sb3_exdm.RunFolder(tiny_pretrain(out=tmp_path / "run").path).transitions()
    env = gym.make("Maze2d-SquareA-v0")
    checked = 0
    for row in range(0, 600, 7):
        start, action, end = (arrays[key][row].astype(np.float64) for key in ("observations", "actions", "next_observations"))
        if not env.unwrapped.layout.contains(start[None])[0]:
            continue  # rounded to single precision onto a wall
        env.reset(options={"position": start})
        reached = env.step(action)[0]
        np.testing.assert_allclose(reached, end, atol=0.011)  # the push back from a wall is random
        checked += 1
    assert checked > 70
    same_env = arrays["env_indices"] == 0
    follows = ~(arrays["truncated"] | arrays["terminated"])[same_env][:-1]
    np.testing.assert_array_equal(
        arrays["next_observations"][same_env][:-1][follows], arrays["observations"][same_env][1:][follows]
    )


@pytest.mark.slow
def test_same_seed_same_run_and_other_seed_other_run():
    first, second, other = (tiny_pretrain(seed=seed) for seed in (3, 3, 4))
    assert first.summary["coverage"] == second.summary["coverage"] != other.summary["coverage"]
    for key, value in first.reward_model.state_dict().items():
        assert th.equal(value, second.reward_model.state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["score", "edp", "exdm-paper", "rnd", "apt", "count", "zero"])
def test_every_reward(reward):
    kwargs = {"net_arch": [8], "residual": False, "n_draws": 2} if reward == "exdm-paper" else {}
    run = tiny_pretrain(400, reward=reward, reward_kwargs=kwargs)
    assert run.summary["coverage"] > 0 and run.summary["reward"] == reward


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sac", "td3", "ddpg", "ppo"])
def test_every_algorithm(algo, tmp_path):
    net = {"policy_kwargs": {"net_arch": [8]}}
    run = sb3_exdm.pretrain(
        "Maze2d-SquareA-v0",
        400,
        algo=algo,
        algo_kwargs=net,
        policy_steps=20,
        progress_bar=False,
        device="cpu",
        out=tmp_path / algo,
    )
    obs = np.zeros((4, 2))
    loaded = sb3_exdm.RunFolder(run.path).load_model(device="cpu")
    np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], run.model.predict(obs, deterministic=True)[0])


@pytest.mark.slow
def test_unbounded_observations_are_normalized_and_restored(tmp_path):
    env_id = "MountainCarContinuous-v0"
    settings = {"policy_kwargs": {"net_arch": [8]}}
    quick = {"algo_kwargs": settings, "policy_steps": 20, "progress_bar": False, "device": "cpu"}
    run = sb3_exdm.pretrain(env_id, 300, out=tmp_path / "car", **quick)
    assert not isinstance(run.model.get_env(), VecNormalize), "bounded observations need none"
    run = sb3_exdm.pretrain(
        "UnboundedPendulum-v0",
        300,
        algo_kwargs=settings,
        out=tmp_path / "p",
        policy_steps=20,
        progress_bar=False,
        device="cpu",
        coverage_dims=[0, 2],
    )
    trained = run.model.get_env()
    assert isinstance(trained, VecNormalize) and run.summary["coverage"] > 10
    loaded = (
        sb3_exdm.RunFolder(run.path).load_model(EnvSource.of("UnboundedPendulum-v0").make_vec(2, 0), device="cpu").get_env()
    )
    np.testing.assert_allclose(loaded.obs_rms.mean, trained.obs_rms.mean)


class Clock(gym.Env):
    """Counts its steps, without a bound and far from 0."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time = 0
        return self._observation(), {}

    def step(self, action):
        self._time += 1
        return self._observation(), 0.0, False, self._time == 7, {}

    def _observation(self):
        return np.array([self._time, 100.0 - 3.0 * self._time], dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_transitions_are_recorded_as_they_were_where_observations_are_normalized(algo, tmp_path):
    gym.register("Clock-v0", Clock)
    settings = {"learning_starts": 50} if algo == "sac" else {"n_steps": 32, "batch_size": 16}
    try:
        sb3_exdm.pretrain(
            "Clock-v0", 140, algo=algo, n_envs=2, out=tmp_path, algo_kwargs=settings, policy_steps=0, progress_bar=False
        )
    finally:
        del gym.registry["Clock-v0"]
    transitions = sb3_exdm.RunFolder(tmp_path).transitions()
    before, after = transitions["observations"], transitions["next_observations"]
    assert transitions["truncated"].sum() == 20
    np.testing.assert_allclose(after, before + np.array([1.0, -3.0]), atol=1e-3)  # also at the ends of episodes
    np.testing.assert_array_equal(transitions["truncated"], np.isclose(after[:, 0], 7.0, atol=1e-3))


def test_discrete_actions_under_ppo():
    run = sb3_exdm.pretrain("CartPole-v1", 300, algo="ppo", n_envs=2, progress_bar=False, device="cpu", coverage_dims=[0, 2])
    assert run.summary["coverage"] > 5 and run.summary["coverage_of_ceiling"] is None


@pytest.mark.slow
def test_bin_width_is_stored_and_runs_of_different_widths_are_not_plotted_together(tmp_path):
    settings = {
        "algo": "ppo",
        "n_envs": 2,
        "reward": "zero",
        "progress_bar": False,
        "algo_kwargs": {"n_steps": 64, "batch_size": 32},
        "policy_steps": 0,
    }
    runs = [
        sb3_exdm.pretrain("CartPole-v1", 1100, bin_width=width, out=tmp_path / str(width), **settings)
        for width in (0.05, 0.5, None)
    ]
    assert [sb3_exdm.RunFolder(run.path).config["bin_width"] for run in runs] == [0.05, 0.5, None]
    assert runs[0].summary["bin_width"] == [0.05, 0.05] and len(runs[2].summary["bin_width"]) == 2
    assert runs[0].summary["coverage"] > 2 * runs[1].summary["coverage"]
    with pytest.raises(ValueError, match="different widths"):
        plot_runs([run.path for run in runs[:2]], tmp_path / "coverage.png")
    with pytest.raises(ValueError, match="without a map"):
        tiny_pretrain(bin_width=0.1)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"env": "Maze2d-SquareZ-v0"}, ValueError, "SquareZ"),
        ({"env": "nowhere:Nothing-v0"}, ValueError, "nowhere"),
        ({"total_timesteps": -5}, ValueError, "total_timesteps.*-5"),
        ({"reward": "fame"}, ValueError, "fame.*score"),
        ({"algo": "dreamer"}, ValueError, "dreamer.*sac"),
        ({"seed": -1}, ValueError, "seed"),
        ({"n_envs": 0}, ValueError, "n_envs"),
        ({"coverage_dims": [0]}, ValueError, "without a map"),
        ({"env": "CartPole-v1"}, ValueError, "continuous actions.*ppo"),
        ({"env": "Pendulum-v1", "coverage_dims": [3]}, ValueError, "0 to 2"),
        ({"reward_kwargs": {"net_arch": np.ones(2)}}, ValueError, "reward_kwargs must be plain data"),
        ({"reward_kwargs": {"net_arch": 3}}, ValueError, "must be Sequence\\[int\\] or None, got 3"),
        ({"env_kwargs": {"layout": np.ones(2)}}, ValueError, "env_kwargs must be plain data"),
        ({"reward_kwargs": {"depth": 3}}, ValueError, "depth"),
        ({"algo_kwargs": {"depth": 3}}, ValueError, "depth"),
        ({"checkpoint_freq": -1}, ValueError, "checkpoint_freq"),
        ({"device": "abacus"}, ValueError, "abacus"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(kwargs, error, message, tmp_path):
    arguments = {"env": "Maze2d-SquareA-v0", "total_timesteps": 100, **kwargs}
    with pytest.raises(error, match=message) as raised:
        sb3_exdm.pretrain(out=tmp_path / "run", progress_bar=False, **{"device": "cpu", **arguments})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists(), "nothing may be written before the arguments are known to be good"


@pytest.mark.slow
def test_output_folder_is_protected(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="is a file"):
        tiny_pretrain(out=tmp_path / "file")
    tiny_pretrain(out=tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds a run"):
        tiny_pretrain(out=tmp_path / "run")
    tiny_pretrain(out=tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_interrupted_run_keeps_the_agent_and_says_so(tmp_path, monkeypatch):
    report = ExplorationCallback._report

    def interrupt(self: ExplorationCallback) -> None:
        report(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ExplorationCallback, "_report", interrupt)
    with pytest.raises(sb3_exdm.RunInterrupted, match=r"Interrupted after 1000 of 2000 steps; .* checkpoint 1000: go on with"):
        tiny_pretrain(2000, out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "1000" / "model.safetensors").is_file()
    with pytest.raises(ArtifactError, match="interrupted"):
        _ = sb3_exdm.RunFolder(tmp_path / "run").summary


@pytest.mark.slow
def test_damaged_and_newer_folders_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a run folder"):
        _ = sb3_exdm.RunFolder(tmp_path).config
    folder = sb3_exdm.RunFolder(tiny_pretrain(out=tmp_path / "run").path)
    (folder.path / "transitions.npz").write_bytes(b"PK broken")
    with pytest.raises(ArtifactError, match="damaged"):
        folder.transitions()
    (folder.path / "model.safetensors").write_bytes((folder.path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="damaged"):
        folder.load_model()
    config = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(ArtifactError, match="newer"):
        _ = folder.config


def random_coverage(maze: str, steps: int, seed: int) -> float:
    env = Maze2dSB3VecEnv(maze, 8, seed=seed)
    env.reset()
    env.action_space.seed(seed)
    coverage = sb3_exdm.StateCoverage(maze)
    for _ in range(steps // 8):
        coverage.update(env.step(np.stack([env.action_space.sample() for _ in range(8)]))[0])
    return coverage.value


@pytest.mark.slow
def test_score_explores_more_than_no_reward_and_than_chance():
    """The point of it all, on a small budget: two seeds in SquareBottleneck, each better than both rivals."""
    maze, steps = "SquareBottleneck", 16_000
    for seed in (0, 1):
        score, zero = (
            sb3_exdm.pretrain(
                f"Maze2d-{maze}-v0", steps, reward=reward, seed=seed, policy_steps=0, progress_bar=False, device="cpu"
            ).summary["coverage"]
            for reward in ("score", "zero")
        )
        assert score > zero + 0.05 and score > random_coverage(maze, steps, seed) + 0.05


def test_import_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(sb3_exdm)
