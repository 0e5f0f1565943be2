"""The reward wrappers under every algorithm and space, their contract in detail, saving, and logging."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize, VecTransposeImage

from sb3_exdm import (
    IntrinsicRewardCallback,
    ScoreModel,
    ScoreRewardReplayBuffer,
    ScoreRewardWrapper,
    VecScoreRewardWrapper,
    load_reward,
    make_reward,
)
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.exploration import online
from sb3_exdm.rewards.base import REWARD_TRANSFORMS

SMALL = dict(learning_starts=16, train_freq=16, batch_size=16, reward_kwargs=dict(net_arch=[8]), device="cpu", seed=0)
EPISODE = 7
OBSERVATIONS = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(4),
    "image_last": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "image_first": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "dict": spaces.Dict(pose=spaces.Box(-1.0, 1.0, (2,), np.float64), mode=spaces.Discrete(3)),
}
ACTIONS = {
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(2),
}


class RandomEnv(gym.Env):
    """Samples of its observation space, whatever is done; the reward is the number of the step; episodes of seven steps."""

    def __init__(self, observation: str = "box", action: str = "box") -> None:
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[action]
        self.n_steps = 0

    def _observe(self) -> Any:
        if isinstance(self.observation_space, spaces.Box) and self.observation_space.dtype == np.float32:
            return self.np_random.uniform(-1.0, 1.0, self.observation_space.shape).astype(np.float32)
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        return self._observe(), float(self.n_steps), self.n_steps == EPISODE, False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(3, dtype=bool)


class CounterEnv(RandomEnv):
    """The observation is the number of the step, tens of ``episode``: which state was reached can be read off it."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = COUNTER
        self.episode = 0

    def _observe(self) -> np.ndarray:
        return np.array([10 * self.episode + self.n_steps], dtype=np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        self.episode += 1
        return super().reset(**kwargs)


COUNTER = spaces.Box(-np.inf, np.inf, (1,))


class Echo:
    """A reward that is the first number of the state (and of the action), and records its fits."""

    fitted = True
    reward_transform = "identity"
    action_space = ACTIONS["box"]

    def __init__(self, observation_space: spaces.Space = COUNTER, needs_actions: bool = False) -> None:
        self.observation_space = observation_space
        self.needs_actions = needs_actions
        self.fits: list[tuple[np.ndarray, int]] = []

    def fit(self, observations, actions=None, gradient_steps=1):
        self.fits.append((np.array(observations), gradient_steps))
        return {}

    def score(self, observations, actions=None):
        score = np.asarray(observations, dtype=np.float32)[:, 0]
        return score + 1000.0 * np.asarray(actions)[:, 0] if self.needs_actions else score

    def reward(self, observations, actions=None):
        return self.score(observations, actions)

    def save(self, path):
        raise NotImplementedError


class Constant(Echo):
    """A reward that is always ``answer``."""

    def __init__(self, answer: np.ndarray) -> None:
        super().__init__(OBSERVATIONS["box"])
        self.answer = answer

    def score(self, observations, actions=None):
        return self.answer


# Under every algorithm and space ---------------------------------------------------------------------------------------

ON_POLICY = dict(n_steps=32, batch_size=16, n_epochs=1)
OFF_POLICY = dict(learning_starts=20, buffer_size=200, batch_size=16, train_freq=8, gradient_steps=1)
ALGORITHMS = {
    "PPO": (stable_baselines3.PPO, ON_POLICY),
    "A2C": (stable_baselines3.A2C, {}),
    "SAC": (stable_baselines3.SAC, OFF_POLICY),
    "TD3": (stable_baselines3.TD3, OFF_POLICY),
    "DDPG": (stable_baselines3.DDPG, OFF_POLICY),
    "DQN": (stable_baselines3.DQN, OFF_POLICY),
    "TRPO": (sb3_contrib.TRPO, dict(n_steps=32, batch_size=16)),
    "TQC": (sb3_contrib.TQC, OFF_POLICY),
    "CrossQ": (sb3_contrib.CrossQ, OFF_POLICY),
    "QRDQN": (sb3_contrib.QRDQN, OFF_POLICY),
    "ARS": (sb3_contrib.ARS, dict(n_delta=1, n_eval_episodes=2)),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, ON_POLICY),
    "MaskablePPO": (sb3_contrib.MaskablePPO, ON_POLICY),
}
CONTINUOUS_ONLY = {"SAC", "TD3", "DDPG", "TQC", "CrossQ"}
DISCRETE_ONLY = {"DQN", "QRDQN", "MaskablePPO"}


POLICIES = {"ARS": "LinearPolicy", "RecurrentPPO": "MlpLstmPolicy"}
POLICY_KWARGS: dict[str, dict[str, Any]] = {"ARS": {}, "RecurrentPPO": dict(net_arch=[8], lstm_hidden_size=8)}


def learn(name: str, env: Any, policy: str | None = None, total_timesteps: int = 64, **policy_kwargs: Any) -> Any:
    algorithm, kwargs = ALGORITHMS[name]
    policy_kwargs = {**POLICY_KWARGS.get(name, dict(net_arch=[8])), **policy_kwargs}
    policy = policy or POLICIES.get(name, "MlpPolicy")
    model = algorithm(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
    return model.learn(total_timesteps)


def recorded(wrapper: Any) -> list[np.ndarray]:
    """The rewards of the wrapper from now on."""
    rewards = []
    reward_step = wrapper._online.reward_step

    def record(*args: Any) -> Any:
        result = reward_step(*args)
        rewards.append(result[0])
        return result

    wrapper._online.reward_step = record
    return rewards


def assert_learned(wrapper: Any, rewards: list[np.ndarray]) -> None:
    """The model was fitted, and the rewards depend on the state."""
    values = np.concatenate(rewards)
    assert len(values) >= 64 and np.isfinite(values).all()
    assert (values[: SMALL["learning_starts"]] == 1.0).all()
    assert np.unique(values[32:]).size > 1
    assert wrapper.reward_model.whitening.n_batches.item() > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns_from_it(name):
    env = ScoreRewardWrapper(RandomEnv(action="discrete" if name in DISCRETE_ONLY else "box"), **SMALL)
    rewards = recorded(env)
    model = learn(name, env)
    assert_learned(env, rewards)
    if hasattr(model, "replay_buffer") and model.replay_buffer is not None:
        stored = model.replay_buffer.rewards[: model.replay_buffer.pos, 0]
        np.testing.assert_array_equal(stored, np.concatenate(rewards)[: len(stored)].astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_every_observation_space(name, observation):
    env = ScoreRewardWrapper(RandomEnv(observation, "discrete"), **SMALL)
    rewards = recorded(env)
    image = dict(features_extractor_kwargs=dict(features_dim=8)) if observation.startswith("image") else {}
    policy = "MultiInputPolicy" if observation == "dict" else "CnnPolicy" if image else "MlpPolicy"
    learn(name, env, policy, **image)
    assert_learned(env, rewards)


@pytest.mark.parametrize("reward", ["score", "edp"])
@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_space(action, reward):
    venv = VecScoreRewardWrapper(make_vec_env(RandomEnv, 2, env_kwargs=dict(action=action)), reward, **SMALL)
    rewards = recorded(venv)
    learn("PPO", venv)
    assert_learned(venv, rewards)


@pytest.mark.parametrize("observation", sorted(set(OBSERVATIONS) - {"box"}))
def test_vectorized_over_every_observation_space(observation):
    venv = VecScoreRewardWrapper(make_vec_env(RandomEnv, 3, env_kwargs=dict(observation=observation)), **SMALL)
    rewards = recorded(venv)
    venv.seed(0)
    venv.reset()
    for _ in range(3 * EPISODE + 1):
        venv.step(np.zeros((3, 2), dtype=np.float32))
    assert_learned(venv, rewards)


def test_images_that_the_algorithm_transposes():
    """SB3 puts ``VecTransposeImage`` outside: the wrapper sees what the environment gives."""
    venv = VecScoreRewardWrapper(make_vec_env(RandomEnv, 2, env_kwargs=dict(observation="image_last")), **SMALL)
    model = learn("PPO", venv, "CnnPolicy", features_extractor_kwargs=dict(features_dim=8))
    assert isinstance(model.get_env(), VecTransposeImage)
    assert venv.reward_model.observation_space.shape == (36, 36, 1)


def test_checkers_find_nothing_wrong(recwarn):
    for observation, action in (("box", "box"), ("dict", "multi_discrete")):
        check_env(ScoreRewardWrapper(RandomEnv(observation, action), **SMALL))
    gymnasium_check_env(ScoreRewardWrapper(RandomEnv(), **SMALL), skip_render_check=True, skip_close_check=True)
    messages = [str(warning.message) for warning in recwarn]
    assert not [message for message in messages if "different from the unwrapped version" not in message]


def test_made_environments_are_rebuilt_from_their_spec():
    env = ScoreRewardWrapper(gym.make("Pendulum-v1", max_episode_steps=5), extrinsic_coef=0.5, **SMALL)
    twin = gym.make(env.spec)
    assert isinstance(twin, ScoreRewardWrapper) and twin.spec == env.spec
    for e in (env, twin):
        e.reset(seed=1)
    action = np.array([0.3], dtype=np.float32)
    for _ in range(5):
        one, two = env.step(action), twin.step(action)
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1:4] == two[1:4]
    env.close()
    twin.close()


def test_a_model_is_never_recorded_in_the_spec():
    model = make_reward("rnd", gym.make("Pendulum-v1").observation_space, seed=0, device="cpu")
    env = ScoreRewardWrapper(gym.make("Pendulum-v1"), model)
    assert env.reward_model is model
    with pytest.raises(TypeError, match="must be a name"):
        gym.make(env.spec)  # rather than with another model


# The reward, and the state that it belongs to ------------------------------------------------------------------------


def test_rewards_the_state_that_was_reached():
    env = ScoreRewardWrapper(CounterEnv(), Echo())
    env.reset()
    assert [env.step(np.zeros(2))[1] for _ in range(EPISODE)] == [11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]
    env.reset()
    assert env.step(np.zeros(2))[1] == 21.0


def test_vectorized_rewards_the_last_state_of_an_episode_not_the_first_of_the_next():
    venv = VecScoreRewardWrapper(make_vec_env(CounterEnv, 2), Echo())
    first = venv.reset()[:, 0]
    for step in range(1, 2 * EPISODE + 1):
        obs, rewards, dones, _ = venv.step(np.zeros((2, 2)))
        episode, in_episode = divmod(step - 1, EPISODE)
        np.testing.assert_array_equal(rewards, first + 10 * episode + in_episode + 1)
        assert dones.all() == (in_episode + 1 == EPISODE)
    np.testing.assert_array_equal(obs[:, 0], first + 20)  # the agent sees the new episode all the same


def test_terminal_observation_of_a_dict_space():
    class DictCounter(gym.ObservationWrapper):
        def __init__(self) -> None:
            super().__init__(CounterEnv())
            self.observation_space = spaces.Dict(count=self.env.observation_space)

        def observation(self, observation):
            return {"count": observation}

    class DictEcho(Echo):
        def score(self, observations, actions=None):
            return np.asarray(observations["count"])[:, 0]

    venv = VecScoreRewardWrapper(make_vec_env(DictCounter, 2), DictEcho(spaces.Dict(count=COUNTER)))
    first = venv.reset()["count"][:, 0]
    for _ in range(EPISODE):
        _, rewards, dones, _ = venv.step(np.zeros((2, 2)))
    assert dones.all()
    np.testing.assert_array_equal(rewards, first + EPISODE)


@pytest.mark.parametrize("vectorized", [False, True])
def test_reward_of_actions_gets_the_state_they_were_taken_in(vectorized):
    reward = Echo(needs_actions=True)
    if vectorized:
        env = VecScoreRewardWrapper(DummyVecEnv([CounterEnv]), reward)
        start = env.reset()[0, 0]
    else:
        env = ScoreRewardWrapper(CounterEnv(), reward)
        start = env.reset()[0][0]
    for step in range(EPISODE + 2):
        action = np.array([float(step), 0.0])
        expected = start + step % EPISODE + 10 * (step // EPISODE) + 1000.0 * step
        if vectorized:
            assert env.step(action[None])[1][0] == expected
        else:
            _, rewards, terminated, _, _ = env.step(action)
            assert rewards == expected
            if terminated:
                env.reset()


@pytest.mark.parametrize("reward_transform", [None, "sqrt_exp", "exp", "identity"])
def test_weights_transform_and_info(reward_transform):
    answer = np.array([0.5], dtype=np.float32)
    env = ScoreRewardWrapper(
        RandomEnv(), Constant(answer), intrinsic_coef=3.0, extrinsic_coef=0.25, reward_transform=reward_transform
    )
    env.reset()
    env.step(np.zeros(2))
    _, reward, _, _, info = env.step(np.zeros(2))
    transformed = float(
        REWARD_TRANSFORMS[reward_transform or "identity"](th.as_tensor(answer))[0].item()
    )  # the reward's own where none is asked for
    assert info["intrinsic_reward"] == pytest.approx(transformed)
    assert info["extrinsic_reward"] == 2.0
    assert reward == pytest.approx(3.0 * transformed + 0.25 * 2.0)
    assert type(reward) is float and type(info["intrinsic_reward"]) is float
    env.reward_settings.intrinsic_coef = 0.0  # e.g. annealed by a callback
    assert env.step(np.zeros(2))[1] == pytest.approx(0.25 * 3.0)


def test_vectorized_weights_and_info():
    venv = VecScoreRewardWrapper(
        make_vec_env(RandomEnv, 2), Constant(np.array([0.5, -1.0], dtype=np.float32)), intrinsic_coef=2.0, extrinsic_coef=0.5
    )
    venv.reset()
    _, rewards, _, infos = venv.step(np.zeros((2, 2)))
    np.testing.assert_allclose(rewards, [1.5, -1.5])
    assert rewards.dtype == np.float32
    assert [(info["intrinsic_reward"], info["extrinsic_reward"]) for info in infos] == [(0.5, 1.0), (-1.0, 1.0)]


def test_task_reward_that_is_not_wanted_may_be_nan():
    env = ScoreRewardWrapper(gym.wrappers.TransformReward(RandomEnv(), lambda _: np.nan), "zero")
    env.reset()
    assert env.step(np.zeros(2))[1] == 0.0


@pytest.mark.parametrize(("reward", "constant"), [("score", 1.0), ("rnd", 1.0), ("exdm-paper", 0.0), ("zero", 0.0)])
def test_all_states_get_the_same_reward_before_learning_starts(reward, constant):
    env = ScoreRewardWrapper(TimeLimit(RandomEnv(), 100), reward, learning_starts=5, train_freq=1, batch_size=8, seed=0)
    env.unwrapped.n_steps = 0
    env.reset(seed=0)
    rewards = [env.step(np.zeros(2))[1] for _ in range(EPISODE)]
    assert rewards[:5] == [constant] * 5
    assert (rewards[5:] != [constant] * 2) == (reward != "zero")


def test_a_fitted_model_rewards_from_the_start():
    model = ScoreModel(OBSERVATIONS["box"], net_arch=[8], seed=0, device="cpu")
    env = ScoreRewardWrapper(RandomEnv(), model)
    env.reset()
    assert env.step(np.zeros(2))[1] == 1.0
    model.fit(np.random.default_rng(0).normal(size=(64, 3)))
    env = ScoreRewardWrapper(RandomEnv(), model)
    env.reset(seed=0)
    obs, reward, *_ = env.step(np.zeros(2))
    assert reward == pytest.approx(float(np.exp(model.reward(obs[None])[0] / 2)))


def test_frozen_wrapper_follows_the_model_of_another():
    """For evaluation while training goes on: built before the model was fitted, and never fitting it itself."""
    train_env = ScoreRewardWrapper(RandomEnv(), **{**SMALL, "learning_starts": 4, "train_freq": 1})
    eval_env = ScoreRewardWrapper(RandomEnv(), train_env.reward_model)
    eval_env.frozen = True
    eval_env.reset(seed=0)
    assert eval_env.step(np.zeros(2))[1] == 1.0
    train_env.reset(seed=0)
    for _ in range(5):
        train_env.step(np.zeros(2))
    assert eval_env.step(np.zeros(2))[1] != 1.0


# When and on what the model is fitted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 3, 16])
def test_number_of_gradient_steps_follows_the_number_of_states(n_envs):
    reward = Echo()
    venv = VecScoreRewardWrapper(
        make_vec_env(CounterEnv, n_envs), reward, learning_starts=20, train_freq=8, gradient_steps=2, batch_size=5
    )
    venv.reset()
    n_steps = 60 // n_envs
    for step in range(1, n_steps + 1):
        venv.step(np.zeros((n_envs, 2)))
        seen = step * n_envs
        done = sum(gradient_steps for _, gradient_steps in reward.fits)
        assert done == (0 if seen < 20 else 2 * (seen // 8))
    assert all(len(observations) == 5 * gradient_steps for observations, gradient_steps in reward.fits)


def test_memory_holds_the_last_states_and_is_drawn_from_uniformly():
    reward = Echo()
    env = ScoreRewardWrapper(
        TimeLimit(CounterEnv(), 5), reward, buffer_size=20, learning_starts=0, train_freq=1, gradient_steps=1, seed=0
    )
    env.reset()
    reached = []
    for _ in range(100):
        obs, _, terminated, truncated, _ = env.step(np.zeros(2))
        reached.append(obs[0])
        if terminated or truncated:
            env.reset()
    observations, _ = reward.fits[-1]
    values, counts = np.unique(observations[:, 0], return_counts=True)
    np.testing.assert_array_equal(values, np.sort(reached[-20:]))  # without reset states, which no action led to
    assert counts.min() > 2 and counts.max() < 30  # 256 draws of 20 states
    assert {len(np.unique(observations)) for observations, _ in reward.fits[:3]} <= {1, 2, 3}


def test_memory_of_large_states_is_bounded(monkeypatch):
    monkeypatch.setattr(online, "MAX_BYTES", 36 * 36 * 50)
    env = ScoreRewardWrapper(RandomEnv("image_first"), "rnd")
    assert env._online.buffer_size == 50
    assert ScoreRewardWrapper(RandomEnv(), "rnd", buffer_size=70)._online.buffer_size == 70


@pytest.mark.parametrize("vectorized", [False, True])
def test_frozen_rewards_but_learns_nothing(vectorized):
    settings = {**SMALL, "learning_starts": 4, "train_freq": 1}
    env = VecScoreRewardWrapper(make_vec_env(RandomEnv, 1, seed=0), **settings) if vectorized else None
    env = env or ScoreRewardWrapper(RandomEnv(), **settings)
    action = np.zeros((1, 2)) if vectorized else np.zeros(2)
    env.reset()
    for _ in range(6):
        env.step(action)
    if not vectorized:
        env.reset()
    assert not env.frozen
    env.frozen = True
    before = {key: value.clone() for key, value in env.reward_model.state_dict().items()}
    seen = env._online.schedule.n_transitions
    rewards = [float(np.squeeze(env.step(action)[1])) for _ in range(6)]
    assert len(set(rewards)) > 1
    assert all(th.equal(value, before[key]) for key, value in env.reward_model.state_dict().items())
    env.frozen = False
    env.step(action)
    assert env._online.schedule.n_transitions == seen + 1
    assert any(not th.equal(value, before[key]) for key, value in env.reward_model.state_dict().items())


# Logging ----------------------------------------------------------------------------------------------------------------

TASK_RETURN = EPISODE * (EPISODE + 1) / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScoreRewardWrapper(RandomEnv(), **SMALL),
        lambda: make_vec_env(RandomEnv, 2, wrapper_class=ScoreRewardWrapper, wrapper_kwargs=SMALL),
        lambda: VecScoreRewardWrapper(make_vec_env(RandomEnv, 2), **SMALL),
        lambda: VecScoreRewardWrapper(DummyVecEnv([RandomEnv]), **SMALL),
    ],
    ids=["bare", "make_vec_env", "vectorized", "vectorized without monitor"],
)
def test_logged_return_is_that_of_the_task(make, tmp_path):
    model = stable_baselines3.A2C("MlpPolicy", make(), seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40)
    assert [info["r"] for info in model.ep_info_buffer] and {info["r"] for info in model.ep_info_buffer} == {TASK_RETURN}


def test_monitor_around_the_wrapper_reports_the_rewards_of_the_agent():
    env = Monitor(ScoreRewardWrapper(RandomEnv(), extrinsic_coef=0.5, **SMALL))
    env.reset(seed=0)
    steps = [env.step(env.action_space.sample()) for _ in range(EPISODE)]
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(reward for _, reward, *_ in steps), abs=1e-5)
    assert steps[-1][4]["episode"]["r"] == pytest.approx(EPISODE + 0.5 * TASK_RETURN)


class Dumps(KVWriter):
    """The values of every dump of a logger."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.values.append(dict(key_values))


def logged(model: Any, total_timesteps: int, **kwargs: Any) -> list[dict[str, Any]]:
    dumps = Dumps()
    model.set_logger(Logger(None, [dumps]))
    model.learn(total_timesteps, callback=IntrinsicRewardCallback(), **kwargs)
    return dumps.values


@pytest.mark.parametrize("kind", ["bare", "make_vec_env", "vectorized"])
def test_intrinsic_reward_is_logged_from_wrappers(kind):
    settings = {**SMALL, "learning_starts": 0}
    if kind == "bare":
        env = ScoreRewardWrapper(RandomEnv(), **settings)
    elif kind == "make_vec_env":
        env = make_vec_env(RandomEnv, 2, wrapper_class=ScoreRewardWrapper, wrapper_kwargs=settings)
    else:
        env = VecScoreRewardWrapper(make_vec_env(RandomEnv, 2), **settings)
    wrappers = [e.env if isinstance(e, Monitor) else e for e in env.envs] if kind == "make_vec_env" else [env]
    rewards = [recorded(wrapper) for wrapper in wrappers]
    env = VecNormalize(env) if kind == "vectorized" else env
    model = stable_baselines3.PPO("MlpPolicy", env, seed=0, device="cpu", n_steps=21, batch_size=21, n_epochs=1)
    dumps = logged(model, 42 * (1 if kind == "bare" else 2))
    assert len(dumps) == 2
    for i, dump in enumerate(dumps):
        rollout = np.concatenate([np.concatenate(r[21 * i : 21 * (i + 1)]) for r in rewards])
        assert dump["rollout/intrinsic_rew_mean"] == pytest.approx(rollout.mean(), rel=1e-5)
        assert dump["rollout/extrinsic_rew_mean"] == pytest.approx(TASK_RETURN / EPISODE)
        assert dump["rollout/ep_rew_mean"] == TASK_RETURN
    for key in ("score_loss", "score_ranking"):
        assert dumps[-1][f"train/{key}"] == pytest.approx(np.mean([wrapper.fit_metrics[key] for wrapper in wrappers]))


@pytest.mark.parametrize("source", ["wrapper", "buffer"])
def test_intrinsic_reward_is_logged_under_off_policy_algorithms(source):
    env: Any = RandomEnv()
    kwargs: dict[str, Any] = {}
    if source == "wrapper":
        env = ScoreRewardWrapper(env, **SMALL)
    else:
        reward_kwargs = dict(seed=0, net_arch=[8])
        kwargs = dict(replay_buffer_class=ScoreRewardReplayBuffer, replay_buffer_kwargs=dict(reward_kwargs=reward_kwargs))
    model = stable_baselines3.SAC("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]), **kwargs)
    dumps = logged(model, 8 * EPISODE, log_interval=4)
    assert len(dumps) == 2
    for dump in dumps:
        assert dump["rollout/extrinsic_rew_mean"] == pytest.approx(TASK_RETURN / EPISODE, rel=0.2)
        assert dump["rollout/ep_rew_mean"] == TASK_RETURN
        assert 0.1 < dump["rollout/intrinsic_rew_mean"] < 10.0
    fitted = env if source == "wrapper" else model.replay_buffer
    assert {"train/score_loss", "train/score_ranking"} <= dumps[-1].keys()
    assert dumps[-1]["train/score_loss"] == pytest.approx(fitted.fit_metrics["score_loss"], rel=0.5)


def test_callback_without_intrinsic_reward_is_refused():
    model = stable_baselines3.PPO("MlpPolicy", RandomEnv(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match="found no intrinsic reward"):
        model.learn(8, callback=IntrinsicRewardCallback())


def test_monitors_are_not_doubled():
    def count(env: gym.Env) -> int:
        return isinstance(env, Monitor) + (count(env.env) if isinstance(env, gym.Wrapper) else 0)

    assert count(ScoreRewardWrapper(RandomEnv(), "zero")) == 1
    assert count(ScoreRewardWrapper(TimeLimit(Monitor(RandomEnv()), 3), "zero")) == 1
    assert isinstance(VecScoreRewardWrapper(DummyVecEnv([RandomEnv]), "zero").venv, VecMonitor)
    assert not isinstance(VecScoreRewardWrapper(make_vec_env(RandomEnv, 1), "zero").venv, VecMonitor)
    inner = VecTransposeImage(VecMonitor(DummyVecEnv([lambda: RandomEnv("image_last")])))
    assert VecScoreRewardWrapper(inner, "zero").venv is inner


# Saving -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vectorized", "observation", "reward", "kwargs"),
    [
        (False, "dict", "score", dict(net_arch=[8])),
        (False, "box", "edp", dict(net_arch=[8])),
        (False, "multi_binary", "apt", {}),
        (True, "box", "score", dict(net_arch=[8])),
        (True, "discrete", "edp", dict(net_arch=[8])),
    ],
)
def test_loaded_wrapper_goes_on_exactly(vectorized, observation, reward, kwargs, tmp_path):
    """Against an uninterrupted one, with a memory that has wrapped around and a fit that is due soon after."""
    n_envs = 3 if vectorized else 1

    def make_env() -> Any:
        env_kwargs = dict(observation=observation)
        return make_vec_env(RandomEnv, n_envs, env_kwargs=env_kwargs) if vectorized else RandomEnv(observation)

    def run(env: Any, n_steps: int, seed: int) -> list[float]:
        rewards = []
        actions = np.random.default_rng(seed).uniform(-1.0, 1.0, (n_steps, n_envs, 2)).astype(np.float32)
        for step in range(n_steps):
            if step % EPISODE == 0 and vectorized:
                env.seed(seed + step)
                env.reset()
            elif step % EPISODE == 0:
                env.reset(seed=seed + step)
            rewards.append(env.step(actions[step] if vectorized else actions[step, 0])[1])
        return np.array(rewards).tolist()

    cls = VecScoreRewardWrapper if vectorized else ScoreRewardWrapper
    settings = dict(buffer_size=40, learning_starts=10, train_freq=9, gradient_steps=3, batch_size=16, extrinsic_coef=0.1)
    env = cls(make_env(), reward, reward_transform="identity", reward_kwargs=kwargs, device="cpu", **settings)
    run(env, 8 * EPISODE, seed=1)
    env.reward_settings.intrinsic_coef = 2.0
    env.save(tmp_path / "wrapper")
    loaded = cls.load(tmp_path / "wrapper", make_env(), device="cpu")
    assert loaded.reward_settings == env.reward_settings and loaded.fit_metrics == env.fit_metrics != {}
    rewards = run(env, 8 * EPISODE, seed=2)
    assert run(loaded, 8 * EPISODE, seed=2) == rewards and len(np.unique(rewards)) > EPISODE
    assert loaded.fit_metrics == env.fit_metrics
    weights, loaded_weights = env.reward_model.state_dict(), loaded.reward_model.state_dict()
    assert all(th.equal(value, loaded_weights[key]) for key, value in weights.items())


def test_unfitted_and_frozen_wrappers_are_saved_too(tmp_path):
    env = ScoreRewardWrapper(RandomEnv(), "rnd", seed=0)
    env.frozen = True
    env.save(tmp_path / "wrapper")
    loaded = VecScoreRewardWrapper.load(tmp_path / "wrapper", make_vec_env(RandomEnv, 2))  # of either wrapper
    assert loaded.frozen and not loaded.reward_model.fitted and loaded.fit_metrics == {}


def test_wrappers_that_cannot_be_saved_or_loaded_are_refused(tmp_path):
    with pytest.raises(TypeError, match="Only a FittedReward can be saved"):
        ScoreRewardWrapper(CounterEnv(), Echo()).save(tmp_path / "wrapper")
    env = ScoreRewardWrapper(RandomEnv(), "rnd")
    env.reward_model.save(tmp_path / "reward")
    with pytest.raises(ArtifactError, match="expected a reward wrapper"):
        ScoreRewardWrapper.load(tmp_path / "reward", RandomEnv())
    env.save(tmp_path / "wrapper")
    with pytest.raises(ArtifactError, match="holds a reward wrapper"):
        load_reward(tmp_path / "wrapper")
    with pytest.raises(ValueError, match="built for the observation_space"):
        ScoreRewardWrapper.load(tmp_path / "wrapper", CounterEnv())


# Reproducibility --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["score", "edp", "exdm-paper", "apt"])
def test_twin_runs_are_equal(reward):
    def run(seed: int) -> tuple[np.ndarray, list]:
        settings = {**SMALL, "seed": seed, "reward_kwargs": {}}
        venv = VecScoreRewardWrapper(make_vec_env(RandomEnv, 2, seed=0), reward, **settings)
        rewards = recorded(venv)
        model = learn("A2C", venv)
        return np.concatenate(rewards), [p.detach().clone() for p in model.policy.parameters()]

    (rewards, weights), (twin_rewards, twin_weights) = run(seed=1), run(seed=1)
    np.testing.assert_array_equal(rewards, twin_rewards)
    assert all(th.equal(a, b) for a, b in zip(weights, twin_weights, strict=True))
    if reward != "apt":  # whose seed matters only once there are more states than a minibatch
        assert not np.array_equal(rewards, run(seed=2)[0])


def test_subprocesses_compute_the_rewards_of_one_process():
    def rewards_of(venv: Any) -> np.ndarray:
        venv.seed(0)
        venv.reset()
        rewards = np.array([venv.step(np.zeros((2, 2)))[1] for _ in range(30)])
        venv.close()
        return rewards

    kwargs: dict[str, Any] = dict(n_envs=2, wrapper_class=ScoreRewardWrapper, wrapper_kwargs=SMALL)
    in_workers = make_vec_env(RandomEnv, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"), **kwargs)
    assert in_workers.env_is_wrapped(ScoreRewardWrapper) == [True, True]
    with pytest.raises(ValueError, match="already"):
        VecScoreRewardWrapper(in_workers)
    in_workers.set_attr("frozen", False)
    np.testing.assert_array_equal(rewards_of(in_workers), rewards_of(make_vec_env(RandomEnv, **kwargs)))


# What is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(intrinsic_coef=float("nan")), "intrinsic_coef must be finite"),
        (dict(extrinsic_coef=float("inf")), "extrinsic_coef must be finite"),
        (dict(buffer_size=0), "buffer_size must be an integer of at least 1"),
        (dict(learning_starts=-1), "learning_starts must be an integer of at least 0"),
        (dict(train_freq=0), "train_freq"),
        (dict(train_freq=2.5), "train_freq"),
        (dict(gradient_steps=-1), "gradient_steps"),
        (dict(batch_size=0), "batch_size"),
        (dict(reward_transform="log"), "Unknown reward_transform 'log'; choose one of exp, sqrt_exp, identity"),
        (dict(reward="curiosity"), "Unknown reward 'curiosity'"),
        (dict(reward=make_reward("rnd", spaces.Box(-1, 1, (9,)), device="cpu")), "built for the observation_space"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ScoreRewardWrapper(RandomEnv(), **kwargs)
    with pytest.raises(ValueError, match=message):
        VecScoreRewardWrapper(DummyVecEnv([RandomEnv]), **kwargs)


def test_unsupported_space_is_refused_at_construction():
    env = RandomEnv()
    env.observation_space = spaces.Tuple([spaces.Discrete(2)])
    with pytest.raises(ValueError, match="Unsupported observation space"):
        ScoreRewardWrapper(env)


def test_arguments_for_a_model_that_exists_are_refused():
    model = make_reward("rnd", OBSERVATIONS["box"], device="cpu")
    with pytest.raises(ValueError, match=r"\['net_arch'\] would be ignored"):
        ScoreRewardWrapper(RandomEnv(), model, reward_kwargs=dict(net_arch=[8]))


def test_wrong_kind_of_environment_is_refused():
    with pytest.raises(TypeError, match="use VecScoreRewardWrapper"):
        ScoreRewardWrapper(DummyVecEnv([RandomEnv]))
    with pytest.raises(TypeError, match="use ScoreRewardWrapper"):
        VecScoreRewardWrapper(RandomEnv())


def test_nesting_is_refused():
    with pytest.raises(ValueError, match="already"):
        ScoreRewardWrapper(TimeLimit(ScoreRewardWrapper(RandomEnv(), "zero"), 5))
    with pytest.raises(ValueError, match="already"):
        VecScoreRewardWrapper(VecMonitor(VecScoreRewardWrapper(make_vec_env(RandomEnv, 1), "zero")))
    with pytest.raises(ValueError, match="already"):
        VecScoreRewardWrapper(make_vec_env(RandomEnv, 2, wrapper_class=ScoreRewardWrapper))


def test_vec_normalize_goes_outside():
    """The other way round, off-policy algorithms store the task's reward: the intrinsic one would be lost silently."""
    with pytest.raises(ValueError, match=r"Use VecNormalize\(VecScoreRewardWrapper\(env\)\)"):
        VecScoreRewardWrapper(VecMonitor(VecNormalize(make_vec_env(RandomEnv, 1))))
    inner = VecScoreRewardWrapper(make_vec_env(RandomEnv, 1), **SMALL)
    rewards = recorded(inner)
    model = learn("SAC", VecNormalize(inner))
    stored = model.replay_buffer.rewards[:64, 0]
    np.testing.assert_array_equal(stored, np.concatenate(rewards).astype(np.float32))
    assert np.unique(stored).size > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("vectorized", [False, True])
def test_bad_observation_is_refused_at_the_step_it_comes(bad, vectorized):
    class Broken(RandomEnv):
        def step(self, action):
            obs, *rest = super().step(action)
            if self.n_steps == 3:
                obs[1] = bad
            return (obs, *rest)

    env = VecScoreRewardWrapper(make_vec_env(Broken, 2)) if vectorized else ScoreRewardWrapper(Broken())
    action = np.zeros((2, 2)) if vectorized else np.zeros(2)
    env.reset()
    env.step(action)
    env.step(action)
    with pytest.raises(ValueError, match=rf"step 3 of the environment.*holds {bad}"):
        env.step(action)


@pytest.mark.parametrize("answer", [np.zeros(2), np.zeros((1, 1))])
def test_reward_that_is_no_number_per_state_is_refused(answer):
    env = ScoreRewardWrapper(RandomEnv(), Constant(answer))
    env.reset()
    with pytest.raises(ValueError, match="as many finite numbers"):
        env.step(np.zeros(2))


@pytest.mark.parametrize("vectorized", [False, True])
def test_her_is_refused(vectorized):
    """It recomputes task rewards, so that the intrinsic ones would be lost silently."""
    env: Any = BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)
    if vectorized:
        env = VecNormalize(VecMonitor(VecScoreRewardWrapper(DummyVecEnv([lambda: env]), "zero")), norm_obs=False)
    else:
        env = TimeLimit(ScoreRewardWrapper(env, "zero"), 4)
    settings = dict(buffer_size=100, learning_starts=12, policy_kwargs=dict(net_arch=[8]))
    model = stable_baselines3.SAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, device="cpu", **settings)
    with pytest.raises(NotImplementedError, match=r"HerReplayBuffer.*would drop the intrinsic reward"):
        model.learn(20)
    assert model.num_timesteps == 13  # the first batch that is sampled


def test_other_methods_of_the_environments_can_be_called():
    venv = VecScoreRewardWrapper(make_vec_env(RandomEnv, 2), "zero")
    assert [mask.sum() for mask in venv.env_method("action_masks")] == [3, 3]
