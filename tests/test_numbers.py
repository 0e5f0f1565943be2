"""Numbers that break learning: NaN, extreme units, large and shifted categories, observations that share their memory."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import QUIET
from gymnasium import spaces
from scipy.stats import spearmanr
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_exdm
from sb3_exdm import (
    ScoreRewardDictReplayBuffer,
    ScoreRewardReplayBuffer,
    ScoreRewardWrapper,
    VecScoreRewardWrapper,
    make_reward,
)
from sb3_exdm.common.env_wrappers import PolicyObservation, policy_space
from sb3_exdm.common.running_moments import Whitening
from sb3_exdm.common.serialization import space_from_json, space_to_json
from sb3_exdm.common.spaces import HASH_DIM, SpaceEncoder
from sb3_exdm.common.validation import check_finite
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.runs.envs import EnvSource

VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)
SMALL: dict[str, Any] = {"learning_starts": 8, "train_freq": 8, "batch_size": 16, "seed": 0}
BAD = [np.nan, np.inf, -np.inf]


class ToyEnv(gym.Env):
    """Random observations in episodes of five steps; ``rewards`` and ``first`` give the reward and the first observation."""

    def __init__(
        self,
        observation_space: spaces.Space = VECTOR,
        action_space: spaces.Space = ACTIONS,
        reward: float = 0.0,
        first: Any = None,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.reward, self.first = reward, first
        self.n_steps = self.n_episodes = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.n_episodes += 1
        self.n_steps = 0
        bad = self.first is not None and self.n_episodes == 2
        return self.first if bad else self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        assert self.action_space.contains(action), action
        reward = self.reward if self.n_steps == 3 else 0.0
        return self.observation_space.sample(), reward, False, self.n_steps == 5, {}


class ReusingEnv(gym.Env):
    """Observes the number of steps since its making, in one array for ever."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = ACTIONS

    def __init__(self) -> None:
        self.array = np.zeros(1, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.array += 100.0
        self.begin = self.array[0]
        return self.array, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.array += 1.0
        return self.array, 0.0, False, bool(self.array[0] >= self.begin + 3), {}


def batch_of_one(space: spaces.Space) -> Any:
    """A random observation as a VecEnv with one environment returns it."""
    sample = space.sample()
    return (
        {key: np.asarray(part)[None] for key, part in sample.items()} if isinstance(sample, dict) else np.asarray(sample)[None]
    )


def play(env: ScoreRewardWrapper, n_steps: int) -> None:
    env.reset(seed=0)
    for _ in range(n_steps):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


def play_vec(env: VecScoreRewardWrapper, n_steps: int) -> None:
    env.reset()
    for _ in range(n_steps):
        env.step(np.zeros((env.num_envs, 1), dtype=np.float32))


class TestRewards:
    @pytest.mark.parametrize("bad", BAD)
    def test_wrapper_stops_at_the_step(self, bad):
        env = ScoreRewardWrapper(ToyEnv(reward=bad), extrinsic_coef=1.0, **SMALL)
        with pytest.raises(ValueError, match=f"extrinsic reward of environment 0 is {bad} at step 3.*extrinsic_coef=0"):
            play(env, 3)

    @pytest.mark.parametrize("bad", BAD)
    def test_vec_wrapper_names_the_environment(self, bad):
        venv = DummyVecEnv([ToyEnv, lambda: ToyEnv(reward=bad)])
        with pytest.raises(ValueError, match=f"extrinsic reward of environment 1 is {bad} at step 3"):
            play_vec(VecScoreRewardWrapper(venv, extrinsic_coef=0.5, **SMALL), 3)

    def test_refused_reward_teaches_nothing(self):
        env = ScoreRewardWrapper(ToyEnv(reward=np.nan), extrinsic_coef=1.0, **SMALL)
        with pytest.raises(ValueError, match="step 3"):
            play(env, 3)
        assert env._online.schedule.n_transitions == 2

    @pytest.mark.parametrize("bad", BAD)
    def test_weight_zero_lets_task_rewards_pass(self, bad):
        env = VecScoreRewardWrapper(DummyVecEnv([lambda: ToyEnv(reward=bad)]), **SMALL)
        play_vec(env, 20)
        assert env.reward_model.fitted

    def test_intrinsic_reward_is_named_with_its_environment(self):
        model = make_reward("zero", VECTOR, device="cpu")
        model.fit(np.zeros((4, 2)))
        model.score_tensor = lambda observations, actions=None: th.tensor([0.0, float("nan")])
        env = VecScoreRewardWrapper(DummyVecEnv([ToyEnv, ToyEnv]), model)
        with pytest.raises(ValueError, match="intrinsic reward of environment 1 is nan at step 1"):
            play_vec(env, 1)

    def test_weighted_reward_must_fit_into_float32(self):
        env = ScoreRewardWrapper(ToyEnv(), intrinsic_coef=1e39, **SMALL)
        with pytest.raises(ValueError, match=r"weighted reward of environment 0 is (inf|1e.39) at step 1.*smaller"):
            play(env, 1)

    @pytest.mark.parametrize("bad", BAD)
    def test_buffers_refuse_them_when_they_come_in(self, bad):
        zeros, reward = np.zeros((2, 2), dtype=np.float32), np.array([0.0, bad], dtype=np.float32)
        buffer = ScoreRewardReplayBuffer(20, VECTOR, ACTIONS, device="cpu", n_envs=2, extrinsic_coef=1.0)
        finetune = FinetuneReplayBuffer(20, VECTOR, ACTIONS, device="cpu", n_envs=2)
        for one in (buffer, finetune):
            with pytest.raises(ValueError, match=f"reward of environment 1 is {bad} at"):
                one.add(zeros, zeros, np.zeros((2, 1)), reward, np.zeros(2), [{}, {}])
            assert one.size() == 0

    def test_buffer_refuses_a_stored_one_when_it_is_weighted(self):
        buffer = ScoreRewardReplayBuffer(4, VECTOR, ACTIONS, device="cpu")
        zeros = np.zeros((1, 2), dtype=np.float32)
        for reward in (0.0, np.nan):
            buffer.add(zeros, zeros, np.zeros((1, 1)), np.array([reward]), np.zeros(1), [{}])
        assert buffer.sample(32).rewards.isfinite().all()
        buffer.reward_settings.extrinsic_coef = 1.0
        with pytest.raises(ValueError, match=r"position 1, environment 0.*extrinsic reward nan"):
            buffer.sample(32)

    def test_scores_that_cannot_be_standardized_are_refused(self):
        model = make_reward("exdm-paper", VECTOR, seed=0, device="cpu")  # takes observations as they are
        with pytest.raises(ValueError, match=r"'exdm-paper' cannot be standardized.*rescale"):
            for _ in range(8):
                model.fit(np.full((16, 2), 1e30))


class TestObservations:
    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("vectorized", [False, True])
    def test_first_one_of_an_episode_is_checked(self, bad, vectorized):
        first = np.array([0.0, bad], dtype=np.float32)
        message = f"first observation of an episode holds {bad} .environment {int(vectorized)}, entry .1."
        if vectorized:
            env = VecScoreRewardWrapper(DummyVecEnv([ToyEnv, lambda: ToyEnv(first=first)]), **SMALL)
            with pytest.raises(ValueError, match=message):
                play_vec(env, 5)  # the fifth step ends the first episode
        else:
            with pytest.raises(ValueError, match=message):
                play(ScoreRewardWrapper(ToyEnv(first=first), **SMALL), 5)

    @pytest.mark.parametrize("which", ["obs", "next_obs"])
    def test_buffers_check_both(self, which):
        step = {"obs": np.zeros((1, 2)), "next_obs": np.zeros((1, 2))}
        step[which] = np.array([[0.0, np.nan]])
        for one in (ScoreRewardReplayBuffer(4, VECTOR, ACTIONS, device="cpu"), FinetuneReplayBuffer(4, VECTOR, ACTIONS)):
            with pytest.raises(ValueError, match=r"observation holds nan \(environment 0"):
                one.add(**step, action=np.zeros((1, 1)), reward=np.zeros(1), done=np.zeros(1), infos=[{}])

    def test_numbers_beyond_float32_are_refused(self):
        check_finite(np.array([3e38, 3e38], dtype=np.float32), "observation")  # whose sum overflows
        with pytest.raises(ValueError, match=r"holds 1e.39 \(row 1, entry \[0\]\), not a finite float32"):
            check_finite(np.array([[0.0], [1e39]]), "observation")

    def test_last_one_of_an_episode_survives_an_environment_that_reuses_its_array(self):
        env = VecScoreRewardWrapper(DummyVecEnv([ReusingEnv]), **SMALL)
        assert env.reset()[0, 0] == 100.0
        reached = [env.step(np.zeros((1, 1)))[3][0].get("terminal_observation") for _ in range(3)][-1]
        assert reached[0] == 103.0
        memory = env._online._memory["observations"][:3, 0]
        np.testing.assert_array_equal(memory, [101.0, 102.0, 103.0])

    def test_wrapping_twice_copies_once(self):
        venv = DummyVecEnv([ReusingEnv])
        VecScoreRewardWrapper(venv)
        env = venv.envs[0]
        VecScoreRewardWrapper(venv)
        assert venv.envs[0] is env

    def test_recipes_copy_too(self):
        env = EnvSource.of(ReusingEnv).make_vec(1, seed=0)
        env.reset()
        for _ in range(3):
            *_, infos = env.step(np.zeros((1, 1)))
        assert infos[0]["terminal_observation"][0] == 103.0


def rank_of_rarity(name: str, offset: float, scale: float, dtype: type, n_fits: int) -> float:
    """Rank correlation of the reward with the distance from the mean, for a Gaussian in other units beside a plain one."""
    rng = np.random.default_rng(0)
    units, origin = np.array([scale, 1.0]), np.array([offset, 0.0])
    model = make_reward(name, spaces.Box(-np.inf, np.inf, (2,), dtype), seed=0, device="cpu")
    for _ in range(n_fits):
        model.fit((origin + units * rng.normal(size=(256, 2))).astype(dtype))
    held_out = np.column_stack([np.linspace(-3, 3, 101), np.zeros(101)])  # the second column tells nothing
    return spearmanr(model.reward((origin + units * held_out).astype(dtype)), np.abs(held_out[:, 0])).statistic


class TestUnits:
    @pytest.mark.parametrize("name", ["score", "apt", "rnd", "count"])
    @pytest.mark.parametrize(
        ("offset", "scale", "dtype"),
        [(1e3, 1e-3, np.float32), (1.7e9, 1e-3, np.float64), (0.0, 1e20, np.float32), (-1e20, 1e15, np.float64)],
    )
    def test_rare_states_are_told_from_common_ones(self, name, offset, scale, dtype):
        assert rank_of_rarity(name, offset, scale, dtype, n_fits=60) > 0.5

    def test_small_units_count_if_all_columns_have_them(self):
        rng = np.random.default_rng(0)
        moments = Whitening(2)
        for _ in range(20):
            moments.update(th.as_tensor(1e-30 * rng.normal(size=(256, 2))))
        whitened = moments.standardize(th.as_tensor(1e-30 * rng.normal(size=(5000, 2))))
        np.testing.assert_allclose(whitened.std(dim=0), 1.0, rtol=0.1)

    def test_jitter_beside_motion_does_not_count(self):
        rng = np.random.default_rng(0)
        moments = Whitening(3)
        batch = np.column_stack([rng.normal(size=256), 1e-8 * rng.normal(size=256), 8.9 + 1e-14 * rng.normal(size=256)])
        moments.update(th.as_tensor(batch))
        assert moments.std[1:].tolist() == [1.0, 1.0]
        assert moments.standardize(th.as_tensor(batch))[:, 1:].abs().max() < 1e-5

    def test_column_that_begins_to_vary_later_gets_its_unit_then(self):
        rng = np.random.default_rng(0)
        moments = Whitening(2)
        for scale in (0.0, 1.0):
            for _ in range(10):
                late = np.column_stack([1e3 + 1e-3 * scale * rng.normal(size=256), 1e20 * scale * rng.normal(size=256)])
                moments.update(th.as_tensor(late))
        assert moments.standardize(th.as_tensor(late)).std(dim=0).min() > 0.5

    def test_ordinary_data_keep_origin_and_unit(self):
        moments = Whitening(3)
        for _ in range(5):
            moments.update(th.randn(256, 3, generator=th.Generator().manual_seed(0)) * th.tensor([1.0, 1e-3, 1e4]) + 5.0)
        assert not moments.origin.any() and (moments.unit == 1.0).all()

    def test_constant_of_any_size_does_not_matter(self):
        moments = Whitening(2)
        for _ in range(3):
            moments.update(th.tensor([[1e30, 0.0], [1e30, 1.0]], dtype=th.float64))
        assert moments.standardize(th.tensor([[1e30, 0.0]], dtype=th.float64)).tolist() == [[0.0, -1.0]]

    def test_growth_beyond_float32_is_refused_and_changes_nothing(self):
        moments = Whitening(2)
        moments.update(th.randn(256, 2, generator=th.Generator().manual_seed(0)))
        before = {key: value.clone() for key, value in moments.state_dict().items()}
        with pytest.raises(ValueError, match=r"Column 1 .*1e.20.*Rescale or clip"):
            moments.update(th.tensor([[0.0, 1e20], [0.0, 0.0]]))
        assert all(th.equal(value, before[key]) for key, value in moments.state_dict().items())

    def test_units_are_saved_and_files_without_them_are_read(self, tmp_path):
        rng = np.random.default_rng(0)
        model = make_reward("apt", spaces.Box(-np.inf, np.inf, (2,), np.float64), seed=0, device="cpu")
        data = np.array([1.7e9, 0.0]) + np.array([1e-3, 1e20]) * rng.normal(size=(256, 2))
        model.fit(data)
        model.save(tmp_path / "model")
        np.testing.assert_array_equal(sb3_exdm.load_reward(tmp_path / "model", device="cpu").score(data), model.score(data))
        tree = make_reward("apt", VECTOR, seed=0, device="cpu").to_tree()
        for name in ("origin", "unit"):
            del tree["weights"][f"whitening.{name}"]
        assert (type(model).from_tree(tree, device="cpu").whitening.unit == 1.0).all()


LARGE = [
    spaces.Discrete(10**6, start=-7, seed=0),
    spaces.Discrete(2**62, seed=0),
    spaces.MultiDiscrete([10**6, 3, 10**9], start=[5, -1, 0], seed=0),
    spaces.MultiDiscrete(np.full((50, 40), 100), seed=0),
    spaces.MultiBinary(10**4, seed=0),
]


class TestCategories:
    @pytest.mark.parametrize("space", LARGE, ids=str)
    def test_large_spaces_have_narrow_codes_that_differ(self, space):
        encoder = SpaceEncoder(space)
        batch = np.array([space.sample() for _ in range(50)])
        code = encoder(batch)
        assert code.shape == (50, HASH_DIM) == (50, encoder.dim) and code.dtype == np.float32
        low, high = encoder.bounds
        assert (low <= code).all() and (code <= high).all()
        assert len(np.unique(code, axis=0)) == 50
        np.testing.assert_array_equal(SpaceEncoder(space)(batch[::-1])[::-1], code)  # a function of the element alone

    def test_hashed_codes_keep_the_distances_of_one_hot_codes(self):
        space = spaces.MultiDiscrete([1000] * 20, seed=0)
        first = np.array([space.sample() for _ in range(200)])
        for n_changed in (1, 5, 20):
            second = first.copy()
            second[:, :n_changed] = (second[:, :n_changed] + 1) % 1000
            squares = ((SpaceEncoder(space)(first) - SpaceEncoder(space)(second)) ** 2).sum(axis=1)
            assert squares.mean() == pytest.approx(2 * HASH_DIM * n_changed / 20, rel=0.1)

    def test_hashed_code_is_part_of_the_format(self):
        """Saved models depend on it."""
        code = SpaceEncoder(spaces.Discrete(10**6))(np.array([0, 999_999]))
        assert code[:, :8].astype(int).tolist() == [[-1, -1, -1, 1, 1, 1, 1, -1], [1, 1, 1, 1, 1, 1, -1, 1]]

    @pytest.mark.parametrize("name", ["score", "apt", "count"])
    def test_unvisited_categories_are_rewarded_more(self, name):
        rng = np.random.default_rng(0)
        model = make_reward(name, spaces.Discrete(10**6), seed=0, device="cpu")
        visited = rng.integers(10**6, size=20)
        for _ in range(60):
            model.fit(rng.choice(visited, size=256))
        assert model.reward(rng.integers(10**6, size=100)).min() > model.reward(visited).max()

    def test_category_outside_is_refused(self):
        for bad in (-8, 10**6 - 7):
            with pytest.raises(ValueError, match="outside"):
                SpaceEncoder(LARGE[0])(np.array([bad]))

    @pytest.mark.parametrize("name", ["score", "edp"])
    def test_shifted_categories_get_the_rewards_of_those_from_zero(self, name):
        """In the wrapper and in the buffer."""
        shifts = {"observation": np.array([3, -2]), "action": 5}
        results = []
        for start in (0, 1):
            observations = spaces.MultiDiscrete([4, 3], start=start * shifts["observation"])
            actions = spaces.Discrete(3, start=start * shifts["action"])
            model = make_reward(name, observations, actions, seed=0, device="cpu")
            rng = np.random.default_rng(0)
            for _ in range(10):
                states = np.column_stack([rng.integers(4, size=32), rng.integers(3, size=32)])
                acts = rng.integers(3, size=32) + actions.start
                model.fit(states + observations.start, acts)
            results.append(model.reward(states + observations.start, acts))
        np.testing.assert_array_equal(*results)

    @pytest.mark.parametrize(
        "action_space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2], start=[0, 1])], ids=["one", "many"]
    )
    def test_shifted_actions_are_refused_where_stable_baselines_would_send_others(self, action_space):
        with pytest.raises(ValueError, match=r"counts discrete actions from zero.*TransformAction"):
            VecScoreRewardWrapper(DummyVecEnv([lambda: ToyEnv(action_space=action_space)]))
        with pytest.raises(ValueError, match="counts discrete actions from zero"):
            ScoreRewardReplayBuffer(4, VECTOR, action_space)
        with pytest.raises(ValueError, match="counts discrete actions from zero"):
            sb3_exdm.pretrain(lambda: ToyEnv(action_space=action_space), 100, algo="ppo", **QUIET)
        env = ScoreRewardWrapper(ToyEnv(action_space=action_space), **SMALL)
        play(env, 20)  # is right with actions of the space
        with pytest.raises(ValueError, match="counts discrete actions from zero"):
            PPO("MlpPolicy", env, n_steps=32, batch_size=32).learn(64)


SCALAR = spaces.Box(-1.0, 1.0, (), np.float32)


class TestShapes:
    @pytest.mark.parametrize("space", [SCALAR, spaces.Dict(a=SCALAR, b=spaces.Discrete(3, start=4))], ids=["box", "dict"])
    def test_boxes_without_an_axis(self, space, tmp_path):
        env = ScoreRewardWrapper(ToyEnv(space), **SMALL)
        play(env, 20)
        assert env.reward_model.fitted
        assert space_from_json(space_to_json(space)) == space
        buffer_class = ScoreRewardDictReplayBuffer if isinstance(space, spaces.Dict) else ScoreRewardReplayBuffer
        buffer = buffer_class(20, space, ACTIONS, device="cpu")
        for _ in range(10):
            buffer.add(batch_of_one(space), batch_of_one(space), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
        assert buffer.sample(4).rewards.shape == (4, 1)

    def test_box_without_entries_is_refused(self):
        with pytest.raises(ValueError, match="has no dimension"):
            ScoreRewardWrapper(ToyEnv(spaces.Box(-1.0, 1.0, (0,))))

    @pytest.mark.parametrize(
        ("space", "expected"),
        [
            (spaces.Discrete(3, start=4), spaces.Discrete(3)),
            (spaces.MultiDiscrete([3, 2], start=[1, -1]), spaces.MultiDiscrete([3, 2])),
            (SCALAR, spaces.Box(-1.0, 1.0, (1,), np.float32)),
            (spaces.Discrete(10**6), spaces.Box(-1.0, 1.0, (HASH_DIM,), np.float32)),
            (spaces.Dict(a=SCALAR, b=VECTOR), spaces.Dict(a=spaces.Box(-1.0, 1.0, (1,), np.float32), b=VECTOR)),
            (VECTOR, VECTOR),
            (spaces.Discrete(4096), spaces.Discrete(4096)),
        ],
        ids=str,
    )
    def test_observations_that_policies_cannot_read_are_changed(self, space, expected):
        assert policy_space(space) == expected
        env = PolicyObservation(ToyEnv(space))
        assert env.reset(seed=0)[0] in env.observation_space
        assert env.step(np.zeros(1, dtype=np.float32))[0] in env.observation_space

    @pytest.mark.parametrize("space", [spaces.Discrete(3, start=4), SCALAR, spaces.Discrete(10**6)], ids=str)
    def test_recipes_take_them(self, space):
        settings = {"policy_steps": 5, "algo_kwargs": {"learning_starts": 50, "policy_kwargs": {"net_arch": [8]}}}
        run = sb3_exdm.pretrain(lambda: ToyEnv(space), 100, **{**QUIET, **settings})
        assert run.reward_model.fitted


def test_optimized_memory_fits_only_pairs_that_occurred():
    """In a full buffer, the position that is written next holds the newest observation beside the oldest action."""
    buffer = ScoreRewardReplayBuffer(
        6, VECTOR, ACTIONS, device="cpu", reward="edp", optimize_memory_usage=True, handle_timeout_termination=False,
        train_freq=1, batch_size=64,
    )  # fmt: skip
    pairs: list[np.ndarray] = []
    model = buffer.reward_model

    def record(observations: np.ndarray, actions: np.ndarray) -> dict[str, float]:
        pairs.append(observations[:, 0] - 10 * actions[:, 0])
        return {}

    model.fit = record  # type: ignore[method-assign]
    for i in range(20):
        obs, next_obs = np.full((1, 2), 0.1 * i, np.float32), np.full((1, 2), 0.1 * (i + 1), np.float32)
        buffer.add(obs, next_obs, np.full((1, 1), 0.01 * i), np.zeros(1), np.zeros(1), [{}])
    assert np.abs(np.concatenate(pairs)).max() < 1e-5
