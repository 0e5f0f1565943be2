"""Rewards computed when a batch is sampled, against plain loops."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_exdm import ScoreModel, ScoreRewardDictReplayBuffer, ScoreRewardReplayBuffer
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, transformed_reward

OBSERVATION = spaces.Box(-5, 5, (3,))
ACTION = spaces.Box(-1, 1, (2,))


def filled(n_steps_added: int, n_envs: int = 2, buffer_size: int = 60, **kwargs) -> ScoreRewardReplayBuffer:
    """A buffer with random transitions, episodes of 7 steps, every other one ending by a time limit."""
    rng = np.random.default_rng(0)
    settings = {"reward_kwargs": {"seed": 0, "device": "cpu"}, "train_freq": 4, "batch_size": 16, **kwargs}
    buffer = ScoreRewardReplayBuffer(buffer_size, OBSERVATION, ACTION, device="cpu", n_envs=n_envs, **settings)
    obs = rng.normal(size=(n_envs, 3)).astype(np.float32)
    for step in range(n_steps_added):
        next_obs = rng.normal(size=(n_envs, 3)).astype(np.float32)
        done = np.full(n_envs, step % 7 == 6)
        infos = [{"TimeLimit.truncated": bool(step % 14 == 6)} for _ in range(n_envs)]
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (n_envs, 2)), rng.normal(size=n_envs), done, infos)
        obs = next_obs
    return buffer


def sample_at(buffer: ScoreRewardReplayBuffer, steps: np.ndarray, seed: int = 0):
    """A batch at given steps, and the environments that it was taken from."""
    np.random.seed(seed)
    envs = np.random.randint(0, buffer.n_envs, size=len(steps))
    np.random.seed(seed)
    return buffer._get_samples(steps), envs


def test_rewards_are_those_of_the_reached_states_before_and_after_fit():
    buffer = filled(25)
    steps = np.arange(25)
    rewards = []
    for _ in range(2):
        batch, envs = sample_at(buffer, steps)
        expected = transformed_reward(buffer.reward_model, buffer.next_observations[steps, envs])
        np.testing.assert_allclose(batch.rewards[:, 0].numpy(), expected, rtol=1e-5)
        rewards.append(batch.rewards.numpy())
        buffer.reward_model.fit(buffer.next_observations[:25, 0], gradient_steps=20)
    assert not np.allclose(*rewards), "fitting must change the rewards of the same transitions"


def test_sampling_is_pure():
    buffer = filled(25)
    weights = {key: value.clone() for key, value in buffer.reward_model.state_dict().items()}
    first, _ = sample_at(buffer, np.arange(20))
    second, _ = sample_at(buffer, np.arange(20))
    assert (first.rewards == second.rewards).all()
    assert all((weights[key] == value).all() for key, value in buffer.reward_model.state_dict().items())


def test_extrinsic_rewards_are_added():
    buffer = filled(25, intrinsic_coef=0.0, extrinsic_coef=2.0)
    batch, envs = sample_at(buffer, np.arange(20))
    np.testing.assert_allclose(batch.rewards[:, 0].numpy(), 2 * buffer.rewards[np.arange(20), envs], rtol=1e-6)


@pytest.mark.parametrize("n_added", [20, 30, 47], ids=["half full", "exactly full", "wrapped around"])
@pytest.mark.parametrize("n_steps", [1, 3, 5])
def test_n_step_returns_against_a_plain_loop(n_added, n_steps):
    gamma = 0.9
    buffer = filled(n_added, n_steps=n_steps, gamma=gamma)
    capacity, newest = buffer.buffer_size, (buffer.pos - 1) % buffer.buffer_size
    steps = np.arange(buffer.size())
    batch, envs = sample_at(buffer, steps)

    def transform(reward):
        return REWARD_TRANSFORMS[buffer.reward_model.reward_transform](th.as_tensor(reward)).numpy()

    for row, (start, env) in enumerate(zip(steps, envs, strict=True)):
        total, discount, step = 0.0, 1.0, start
        while True:
            total += discount * transform(buffer.reward_model.reward(buffer.next_observations[step, env][None]))[0]
            discount *= gamma
            ended = buffer.dones[step, env] or step == newest
            if ended or discount <= gamma**n_steps * 1.000001:
                break
            step = (step + 1) % capacity
        assert batch.rewards[row, 0].item() == pytest.approx(total, rel=1e-4)
        np.testing.assert_array_equal(batch.next_observations[row].numpy(), buffer.next_observations[step, env])
        is_end = buffer.dones[step, env] and not buffer.timeouts[step, env]
        assert batch.dones[row, 0].item() == float(is_end)
        if n_steps > 1:
            assert batch.discounts[row, 0].item() == pytest.approx(discount)


def test_reward_is_fitted_every_train_freq_transitions():
    buffer = filled(25, n_envs=2, train_freq=8)
    assert buffer.reward_model.whitening.n_batches.item() == 25 * 2 // 8
    assert set(buffer.fit_metrics) >= {"score_loss"}


@pytest.mark.parametrize("n_steps_added", [5, 9, 10, 25])
def test_first_fit_takes_the_gradient_steps_of_all_transitions_before(n_steps_added):
    """As in the wrappers, see test_wrapper.py."""
    buffer = filled(n_steps_added, n_envs=2, learning_starts=20, train_freq=8, gradient_steps=3)
    n_fits = n_steps_added * 2 // 8 if n_steps_added * 2 >= 20 else 0
    assert buffer.reward_model.whitening.n_batches.item() == 3 * n_fits
    batch, _ = sample_at(buffer, np.arange(5))
    assert (batch.rewards == 1.0).all() == (n_fits == 0)


def test_batch_size_is_that_of_a_gradient_step():
    buffer = filled(300, buffer_size=400, train_freq=600, batch_size=300)
    sizes = []
    fit_batch = buffer.reward_model._fit_batch
    buffer.reward_model._fit_batch = lambda batch, actions: sizes.append(len(batch)) or fit_batch(batch, actions)
    filled_again = np.zeros((2, 3), dtype=np.float32)
    for _ in range(300):
        buffer.add(filled_again, filled_again, np.zeros((2, 2)), np.zeros(2), np.zeros(2), [{}, {}])
    assert sizes == [300]


def test_weights_can_be_changed_while_training():
    buffer = filled(25, intrinsic_coef=1.0)
    before, _ = sample_at(buffer, np.arange(20))
    buffer.reward_settings.intrinsic_coef = 0.5
    after, _ = sample_at(buffer, np.arange(20))
    np.testing.assert_allclose(after.rewards, 0.5 * before.rewards, rtol=1e-6)


def test_score_stays_raw_under_vec_normalize():
    venv = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    model = SAC(
        "MlpPolicy",
        venv,
        replay_buffer_class=ScoreRewardReplayBuffer,
        replay_buffer_kwargs={"reward_kwargs": {"seed": 0}},
        policy_kwargs={"net_arch": [8]},
        learning_starts=10,
        seed=0,
        device="cpu",
    ).learn(60)
    buffer = model.replay_buffer
    np.random.seed(0)
    batch = buffer.sample(16, env=venv)
    np.random.seed(0)
    raw = buffer.sample(16)
    assert (batch.rewards == raw.rewards).all() and not (batch.observations == raw.observations).all()


def learn(algorithm, env, **kwargs):
    settings = {
        "replay_buffer_class": ScoreRewardReplayBuffer,
        "replay_buffer_kwargs": {"reward_kwargs": {"seed": 0}, "train_freq": 8},
        "policy_kwargs": {"net_arch": [8]},
        "learning_starts": 20,
        "buffer_size": 500,
        "seed": 0,
        "device": "cpu",
        **kwargs,
    }
    return algorithm(settings.pop("policy", "MlpPolicy"), env, **settings).learn(80)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "env"), [(SAC, "Pendulum-v1"), (TD3, "Pendulum-v1"), (DDPG, "Pendulum-v1"), (DQN, "CartPole-v1")]
)
def test_works_in_every_off_policy_algorithm(algorithm, env):
    model = learn(algorithm, env)
    assert model.replay_buffer.reward_model.fitted
    assert model.replay_buffer.sample(8).rewards.isfinite().all()


@pytest.mark.slow
def test_works_in_sb3_contrib():
    contrib = pytest.importorskip("sb3_contrib")
    for algorithm in (contrib.TQC, contrib.CrossQ):
        assert learn(algorithm, "Pendulum-v1").replay_buffer.reward_model.fitted


class DictEnv(gym.Env):
    """A point, observed as a Dict."""

    observation_space = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(3)})
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_dict_observations():
    model = learn(SAC, DictEnv(), policy="MultiInputPolicy", replay_buffer_class=ScoreRewardDictReplayBuffer)
    batch = model.replay_buffer.sample(8)
    assert set(batch.observations) == {"position", "room"} and batch.rewards.isfinite().all()
    with pytest.raises(ValueError, match="ScoreRewardDictReplayBuffer"):
        learn(SAC, DictEnv(), policy="MultiInputPolicy")


@pytest.mark.slow
def test_optimized_memory_gives_the_same_rewards():
    kwargs = {"reward_kwargs": {"seed": 0}, "train_freq": 8}
    plain = learn(SAC, "Pendulum-v1", replay_buffer_kwargs={**kwargs, "handle_timeout_termination": False})
    thrifty = learn(
        SAC, "Pendulum-v1", optimize_memory_usage=True, replay_buffer_kwargs={**kwargs, "handle_timeout_termination": False}
    )
    steps, envs = np.arange(60), np.zeros(60, dtype=int)
    np.testing.assert_allclose(
        plain.replay_buffer.intrinsic_rewards(steps, envs), thrifty.replay_buffer.intrinsic_rewards(steps, envs)
    )


def test_saved_model_is_small_and_buffer_keeps_its_reward_model(tmp_path):
    model = learn(SAC, "Pendulum-v1")
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 200_000
    model.save_replay_buffer(tmp_path / "buffer")
    again = SAC.load(tmp_path / "model", device="cpu")
    again.load_replay_buffer(tmp_path / "buffer")
    steps, envs = np.arange(50), np.zeros(50, dtype=int)
    np.testing.assert_array_equal(
        again.replay_buffer.intrinsic_rewards(steps, envs), model.replay_buffer.intrinsic_rewards(steps, envs)
    )


@pytest.mark.slow
def test_twin_runs_are_identical():
    first, second = (learn(SAC, "Pendulum-v1") for _ in range(2))
    np.testing.assert_array_equal(first.replay_buffer.next_observations[:80], second.replay_buffer.next_observations[:80])
    obs = first.replay_buffer.next_observations[:10, 0]
    np.testing.assert_array_equal(first.replay_buffer.reward_model.score(obs), second.replay_buffer.reward_model.score(obs))


def test_detached_buffer_refuses_to_work_until_a_model_is_attached():
    with pytest.raises(RuntimeError, match="set_reward_model"):
        filled(3, reward=None)
    buffer = ScoreRewardReplayBuffer(10, OBSERVATION, ACTION, device="cpu", reward=None)
    with pytest.raises(RuntimeError, match="set_reward_model"):
        _ = buffer.reward_model
    model = ScoreModel(OBSERVATION, seed=0, device="cpu")
    buffer.set_reward_model(model)
    assert buffer.reward_model is model
    with pytest.raises(ValueError, match="observation_space"):
        buffer.set_reward_model(ScoreModel(spaces.Box(-1, 1, (4,)), seed=0, device="cpu"))


def test_nan_observations_are_refused_when_they_come_in():
    buffer = filled(3)
    bad = np.array([[0.0, np.nan, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    with pytest.raises(ValueError, match="nan"):
        buffer.add(bad, bad, np.zeros((2, 2)), np.zeros(2), np.zeros(2), [{}, {}])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"reward": "icecream"}, ValueError, "icecream"),
        ({"reward": object()}, TypeError, "set_reward_model"),
        ({"train_freq": 0}, ValueError, "train_freq"),
        ({"learning_starts": -1}, ValueError, "learning_starts"),
        ({"reward_kwargs": {"n_level": 2}}, ValueError, "did you mean 'n_levels'"),
        ({"reward_transform": "log"}, ValueError, "exp"),
        ({"intrinsic_coef": float("nan")}, ValueError, "finite"),
        ({"n_steps": 3, "optimize_memory_usage": True, "handle_timeout_termination": False}, ValueError, "n_steps=1"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        ScoreRewardReplayBuffer(10, OBSERVATION, ACTION, device="cpu", **kwargs)
