"""Diffusion policies from recorded behavior, wherever it was recorded."""

import pickle
import shutil
import sys
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.vec_env import VecNormalize

import sb3_exdm
from sb3_exdm import DiffusionActor, clone
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.policies.diffusion_actor import load_pretrained
from sb3_exdm.recipes.behavior_cloning import clone_agent
from sb3_exdm.runs.envs import EnvSource

OBSERVATION = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(np.array([-1.0, 10.0], np.float32), np.array([3.0, 30.0], np.float32))
MODES = np.array([[0.0, 28.0], [2.5, 14.0]])
QUICK = {"gradient_steps": 60, "batch_size": 32, "progress_bar": False, "device": "cpu", "policy_kwargs": {"net_arch": [16]}}


def two_modes(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Observations on a scale of their own, and one of two actions, whatever is observed."""
    rng = np.random.default_rng(0)
    actions = MODES[rng.integers(2, size=n)] + rng.normal(size=(n, 2)) * [0.05, 0.25]
    return (50.0 + 20.0 * rng.normal(size=(n, 3))).astype(np.float32), actions.astype(np.float32)


def assert_both_modes(actor: DiffusionActor) -> None:
    """About half of the samples at each, next to nothing between them."""
    samples = actor.predict(np.repeat(two_modes(8)[0], 50, axis=0))
    assert samples.shape == (400, 2)
    distances = np.linalg.norm((samples[:, None] - MODES) / [4.0, 20.0], axis=2)  # (400, 2), in widths of the space
    near = distances < 0.12
    assert near.any(axis=1).mean() > 0.8
    assert 0.3 < near[:, 0].mean() / near.any(axis=1).mean() < 0.7


def filled_buffer(n_envs: int = 2, n: int = 400, size: int = 500) -> ReplayBuffer:
    buffer = ReplayBuffer(size, OBSERVATION, ACTION, "cpu", n_envs=n_envs)
    observations, actions = two_modes(n)
    scaled = 2.0 * (actions - ACTION.low) / (ACTION.high - ACTION.low) - 1.0  # as algorithms store them
    for rows in np.split(np.arange(n), n // n_envs):
        ends = np.zeros(n_envs)
        buffer.add(observations[rows], observations[rows], scaled[rows], ends, ends, [{}] * n_envs)
    return buffer


def same_policy(first: DiffusionActor, second: DiffusionActor) -> bool:
    weights = second.state_dict()
    return all(th.equal(value, weights[key]) for key, value in first.state_dict().items())


@pytest.mark.slow
def test_a_clone_has_both_modes_of_a_replay_buffer(tmp_path):
    # Without the frequencies a network takes very long to tell two equally frequent actions apart.
    settings = {"net_arch": [48, 48], "learning_rate": 5e-3, "frequencies": [np.pi / 2]}
    actor = clone(
        filled_buffer(), tmp_path, gradient_steps=800, batch_size=128, policy_kwargs=settings, progress_bar=False, device="cpu"
    )
    assert_both_modes(actor)
    observations, _ = two_modes()
    np.testing.assert_allclose(actor.features.mean, observations.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(actor.features.std, observations.std(axis=0), rtol=1e-4)
    # The file holds the same, and a policy starts from it.
    loaded, gaussian, _ = load_pretrained(tmp_path, "cpu")
    assert same_policy(actor, loaded) and gaussian is None and loaded.config["net_arch"] == [48, 48]
    assert_both_modes(loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


@pytest.mark.slow
def test_every_source_of_the_same_rows_gives_the_same_clone(tmp_path):
    expected = DiffusionActor(OBSERVATION, ACTION, seed=5, net_arch=[16])
    expected.fit(*two_modes(), gradient_steps=60, batch_size=32)
    buffer = filled_buffer()
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    full = filled_buffer(n=400, size=400)
    assert full.full
    for source in (buffer, tmp_path / "buffer.pkl", str(tmp_path / "buffer.pkl"), full):
        actor = clone(source, tmp_path / "out" / "my.safetensors", allow_pickle=True, seed=5, **QUICK)
        th.testing.assert_close(actor.state_dict(), expected.state_dict())
        assert same_policy(DiffusionActor.load(tmp_path / "out" / "my.safetensors", "cpu"), actor)
    assert not same_policy(clone(buffer, seed=6, **QUICK), expected)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my.safetensors"]


def test_replay_buffer_of_a_model_in_an_environment_with_bounds_of_its_own(tmp_path, monkeypatch):
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=1000, buffer_size=300, device="cpu", seed=0)
    model.learn(200)
    model.save_replay_buffer(tmp_path / "buffer")
    recorded, fit = [], DiffusionActor.fit

    def spy(self, observations, actions, *args, **kwargs):
        recorded.append((observations, actions))
        return fit(self, observations, actions, *args, **kwargs)

    monkeypatch.setattr(DiffusionActor, "fit", spy)
    clone(tmp_path / "buffer.pkl", allow_pickle=True, **QUICK)
    ((observations, actions),) = recorded
    assert observations.shape == (200, 3) and actions.shape == (200, 1)
    assert actions.min() < -1.5 and actions.max() > 1.5, "in the units of the environment"
    # The actions move the pendulum as they did.
    env = gym.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    for row in range(0, 150, 10):
        cosine, sine, speed = observations[row]
        env.state = np.array([np.arctan2(sine, cosine), speed], dtype=np.float64)
        np.testing.assert_allclose(env.step(actions[row])[0], observations[row + 1], atol=1e-4)


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A run in an environment without bounds, whose observations were normalized."""
    path = tmp_path_factory.mktemp("explored") / "run"
    settings = {"learning_starts": 100, "policy_kwargs": {"net_arch": [16]}}
    return sb3_exdm.pretrain(
        "UnboundedPendulum-v0",
        300,
        out=path,
        algo_kwargs=settings,
        policy_steps=50,
        coverage_dims=[0, 2],
        progress_bar=False,
        device="cpu",
    )


@pytest.mark.slow
def test_clone_of_a_run_is_what_pretraining_fits(explored, tmp_path):
    first, gaussian, _ = load_pretrained(explored.path, "cpu")
    assert same_policy(first, explored.policy)
    again = clone(explored.path, tmp_path / "again", **{**QUICK, "gradient_steps": 50, "batch_size": 512, "policy_kwargs": {}})
    th.testing.assert_close(again.state_dict(), first.state_dict())
    _, gaussian_again, _ = load_pretrained(tmp_path / "again", "cpu")
    th.testing.assert_close(gaussian_again.state_dict(), gaussian.state_dict())


@pytest.mark.parametrize("cloned", [False, True])
def test_gaussian_of_a_run_acts_as_the_agent_did(cloned, explored, tmp_path):
    path = explored.path
    if cloned:
        clone(path, tmp_path, **QUICK)
        path = tmp_path
    actor, gaussian, _ = load_pretrained(path, "cpu")
    env = EnvSource.of("UnboundedPendulum-v0").make_vec(2, 0)
    model = sb3_exdm.RunFolder(explored.path).load_model(env, device="cpu")
    normalizer = model.get_env()
    assert isinstance(normalizer, VecNormalize)
    raw = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * [1, 1, 40]  # some are clipped
    expected, _ = model.predict(normalizer.normalize_obs(raw), deterministic=True)
    with th.no_grad():
        found = gaussian.mode(actor.features(th.as_tensor(raw))).numpy() * 2.0  # bounds of the pendulum
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


def test_gaussian_only_where_there_is_one():
    """Other algorithms have none, and one on other features would act otherwise."""
    fourier = {"net_arch": [8]}
    plain = {"net_arch": [8], "features_extractor_class": "FlattenExtractor"}
    off_policy = {"learning_starts": 50}
    for name, algo, policy_kwargs, settings in (
        ("ppo", "ppo", fourier, {"n_steps": 8, "batch_size": 8}),
        ("td3", "td3", fourier, off_policy),
        ("plain", "sac", plain, off_policy),
        ("sac", "sac", fourier, off_policy),
    ):
        settings = {**settings, "policy_kwargs": policy_kwargs}
        quick = {"algo_kwargs": settings, "policy_steps": 0, "progress_bar": False, "device": "cpu"}
        run = sb3_exdm.pretrain("Maze2d-SquareA-v0", 80, algo=algo, **quick)
        with nullcontext() if name == "sac" else pytest.warns(UserWarning, match="Gaussian policy is not saved"):
            policy, gaussian, _ = clone_agent(run.model, two_rows(), 1)
        assert (gaussian is not None) == (name == "sac")
        if gaussian is not None:
            obs = np.random.default_rng(0).uniform([-0.5, -4.5], [4.5, 0.5], (20, 2))
            with th.no_grad():
                found = gaussian.mode(policy.features(th.as_tensor(obs))).numpy() * 0.95
            np.testing.assert_allclose(found, run.model.predict(obs, deterministic=True)[0], atol=1e-5)


def two_rows() -> dict[str, np.ndarray]:
    return {"observations": np.array([[0.0, 0.0], [1.0, -1.0]]), "actions": np.array([[0.5, 0.5], [-0.5, 0.0]])}


class TestMinari:
    @pytest.fixture
    def dataset(self, tmp_path, monkeypatch):
        minari = pytest.importorskip("minari")
        pytest.importorskip("h5py")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

        def make(dataset_id: str, observation_space: spaces.Space, make_observation) -> None:
            episodes, (_, actions) = [], two_modes(40)
            for index, n in enumerate((15, 25)):
                rows = actions[:15] if index == 0 else actions[15:]
                ends = [False] * (n - 1)
                episodes.append(
                    minari.data_collector.EpisodeBuffer(
                        id=index,
                        observations=make_observation(n + 1),
                        actions=rows,
                        rewards=[0.0] * n,
                        terminations=[*ends, False],
                        truncations=[*ends, True],
                    )
                )
            minari.create_dataset_from_buffers(dataset_id, episodes, observation_space=observation_space, action_space=ACTION)

        return make

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_clone(self, dataset, tmp_path):
        dataset("toy/modes-v0", OBSERVATION, lambda n: np.arange(3 * n, dtype=np.float32).reshape(n, 3))
        actor = clone("toy/modes-v0", tmp_path / "out", seed=5, **QUICK)
        assert actor.observation_space == OBSERVATION and actor.action_space == ACTION
        # An episode has an observation more than actions; the last one was not acted upon.
        observations = np.concatenate([np.arange(3 * n, dtype=np.float32).reshape(n, 3) for n in (15, 25)])
        expected = DiffusionActor(OBSERVATION, ACTION, seed=5, net_arch=[16])
        expected.fit(observations, two_modes(40)[1], gradient_steps=60, batch_size=32)
        th.testing.assert_close(actor.state_dict(), expected.state_dict())
        assert same_policy(DiffusionActor.load(tmp_path / "out", "cpu"), actor)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_observations_that_are_no_vectors(self, dataset):
        dataset("toy/dict-v0", spaces.Dict(a=OBSERVATION), lambda n: {"a": np.zeros((n, 3), np.float32)})
        with pytest.raises(ValueError, match=r"Box observations.*Dict"):
            clone("toy/dict-v0", **QUICK)

    def test_unknown_datasets(self, tmp_path, monkeypatch):
        pytest.importorskip("minari")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        for name in ("toy/nothing-v0", "toy/nothing", str(tmp_path / "typo"), "typo.pkl"):
            with pytest.raises(ArtifactError, match="neither a run folder, a file nor a local Minari dataset"):
                clone(name, **QUICK)

    def test_minari_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "minari", None)
        with pytest.raises(ArtifactError, match=r"pip install 'minari\[hdf5\]'"):
            clone("toy/modes-v0", **QUICK)

    def test_what_reads_the_files_of_minari_is_missing(self, monkeypatch):
        def load_dataset(dataset_id: str) -> None:
            raise ImportError("h5py is not installed")

        monkeypatch.setattr(pytest.importorskip("minari"), "load_dataset", load_dataset)
        with pytest.raises(ArtifactError, match=r"toy/modes-v0 cannot be read.*h5py"):
            clone("toy/modes-v0", **QUICK)


class TestRefusals:
    def test_files_that_are_no_replay_buffers(self, tmp_path):
        path = tmp_path / "buffer.pkl"
        for content in (b"garbage", b"", b"hello world\n", b"PK\x03\x04", b"I1x\n.", pickle.dumps(filled_buffer())[:300]):
            path.write_bytes(content)
            with pytest.raises(ArtifactError, match=r"buffer\.pkl is not a saved replay buffer"):
                clone(path, allow_pickle=True, **QUICK)
        path.write_bytes(pickle.dumps({"observations": 3}))
        with pytest.raises(ArtifactError, match=r"buffer\.pkl holds dict"):
            clone(path, allow_pickle=True, **QUICK)

    def test_buffers_of_other_spaces_and_empty_ones(self):
        both = spaces.Dict(a=OBSERVATION)
        with pytest.raises(ValueError, match=r"Box spaces.*Dict"):
            clone(DictReplayBuffer(10, both, ACTION, "cpu"), **QUICK)
        with pytest.raises(ValueError, match=r"Box spaces.*Discrete"):
            clone(ReplayBuffer(10, OBSERVATION, spaces.Discrete(3), "cpu"), **QUICK)
        with pytest.raises(ValueError, match="empty"):
            clone(ReplayBuffer(10, OBSERVATION, ACTION, "cpu"), **QUICK)
        broken = filled_buffer()
        broken.observations[3] = np.nan
        with pytest.raises(ValueError, match="observations hold NaN"):
            clone(broken, **QUICK)

    def test_runs_without_transitions(self, explored, tmp_path):
        shutil.copytree(explored.path, tmp_path / "run")
        (tmp_path / "run" / "transitions.npz").unlink()
        with pytest.raises(ArtifactError, match=r"transitions\.npz does not exist"):
            clone(tmp_path / "run", **QUICK)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"gradient_steps": 0}, "gradient_steps"),
            ({"batch_size": 0}, "batch_size"),
            ({"seed": -1}, "seed"),
            ({"device": "abacus"}, "abacus"),
            ({"policy_kwargs": {"depth": 3}}, "policy_kwargs.*depth"),
        ],
    )
    def test_bad_arguments(self, kwargs, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            clone(filled_buffer(n=20), tmp_path / "out", **{**QUICK, **kwargs})
        assert not (tmp_path / "out").exists()
