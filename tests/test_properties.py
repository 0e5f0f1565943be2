"""Invariants over random spaces, types, batch sizes and orders of calls."""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_exdm import (
    REWARDS,
    FittedReward,
    ScoreRewardDictReplayBuffer,
    ScoreRewardReplayBuffer,
    ScoreRewardWrapper,
    VecScoreRewardWrapper,
    load_reward,
    make_reward,
)
from sb3_exdm.common.env_wrappers import policy_space
from sb3_exdm.common.serialization import space_from_json, space_to_json
from sb3_exdm.common.spaces import SpaceEncoder, scale_actions, unscale_actions
from sb3_exdm.policies.diffusion_actor import DiffusionActor

ACTIONS = spaces.Box(-2.0, 1.0, (2,), np.float32)

# Spaces -------------------------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**31 - 1)
FLOATS = st.sampled_from([np.float32, np.float64])


@st.composite
def boxes(draw) -> spaces.Box:
    """Vectors of floats and integers, bounded and not."""
    shape, bounded = draw(st.sampled_from([(), (1,), (3,), (2, 2), (12,)])), draw(st.booleans())
    if draw(st.booleans()):
        scale = draw(st.sampled_from([1.0, 1e-6, 1e6]))
        high = scale if bounded else np.inf
        return spaces.Box(-high, high, shape, draw(FLOATS))
    dtype = draw(st.sampled_from([np.int8, np.uint16, np.int32, np.int64]))
    return spaces.Box(0, 100 if bounded else np.iinfo(dtype).max // 2, shape, dtype)


@st.composite
def categories(draw) -> spaces.Space:
    sizes, starts = st.sampled_from([1, 2, 7, 300, 10**6]), st.integers(-5, 5)
    if draw(st.booleans()):
        return spaces.Discrete(draw(sizes), start=draw(starts))
    n = draw(st.integers(1, 3))
    lists = [draw(st.lists(values, min_size=n, max_size=n)) for values in (sizes, starts)]
    return spaces.MultiDiscrete(lists[0], start=lists[1])


IMAGES = st.sampled_from([(8, 8, 1), (36, 40, 3), (3, 36, 36)]).map(lambda shape: spaces.Box(0, 255, shape, np.uint8))
BITS = st.sampled_from([3, (2, 2)]).map(spaces.MultiBinary)
LEAVES = boxes() | categories() | IMAGES | BITS
SPACES = LEAVES | st.lists(LEAVES, min_size=1, max_size=3).map(
    lambda parts: spaces.Dict(dict(zip("abc", parts, strict=False)))
)


def batch_of(space: spaces.Space, n: int, seed: int) -> Any:
    """``n`` random elements of a space, as a VecEnv returns them."""
    batched = batch_space(space, n)
    batched.seed(seed)
    return batched.sample()


def take(batch: Any, rows: Any) -> Any:
    return {key: take(part, rows) for key, part in batch.items()} if isinstance(batch, dict) else np.asarray(batch)[rows]


class RandomEnv(gym.Env):
    """Random observations in short episodes, the same for the same seed."""

    def __init__(self, observation_space: spaces.Space, seed: int) -> None:
        self.observation_space, self.action_space = pickle.loads(pickle.dumps(observation_space)), ACTIONS
        self.observation_space.seed(seed)
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        return self.observation_space.sample(), float(self.n_steps), self.n_steps % 7 == 0, self.n_steps % 5 == 0, {}


# Rewards ------------------------------------------------------------------------------------------------------------------

TINY: dict[str, dict[str, Any]] = {
    "score": {"net_arch": [8]},
    "edp": {"net_arch": [8]},
    "rnd": {"net_arch": [8], "embedding_dim": 4},
    "apt": {"n_references": 64, "n_neighbors": 3},
    "exdm-paper": {"net_arch": [8], "n_draws": 2},
    "count": {"n_slots": 256},
    "zero": {},
}


def tiny(name: str, space: spaces.Space, seed: int = 0) -> FittedReward:
    return make_reward(name, space, ACTIONS, seed=seed, device="cpu", batch_size=16, **TINY[name])  # type: ignore[return-value]


def plain(tree: Any) -> Any:
    """A tree of tensors and arrays as data that can be compared."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    return tree.tolist() if isinstance(tree, (th.Tensor, np.ndarray)) else tree


def state_of(model: Any) -> Any:
    """Everything that is learned or random."""
    return plain([model.to_tree(), th.get_rng_state(), np.random.get_state()])


def assert_same(one: np.ndarray, other: np.ndarray, exactly: bool = False) -> None:
    """Equal up to the rounding of products of matrices of other sizes."""
    np.testing.assert_allclose(one, other, rtol=0 if exactly else 1e-3, atol=0 if exactly else 1e-4)


# Properties ---------------------------------------------------------------------------------------------------------------


def encoder_maps_rows_one_by_one(data: st.DataObject) -> None:
    space, n, seed = data.draw(SPACES), data.draw(st.integers(1, 20)), data.draw(SEEDS)
    encoder = SpaceEncoder(space)
    batch = batch_of(space, n, seed)
    code = encoder(batch)
    assert code.shape == (n, encoder.dim) and np.isfinite(code).all()
    low, high = encoder.bounds
    assert (code >= low - 1e-6).all() and (code <= high + 1e-6).all()
    rows = np.random.default_rng(seed).integers(n, size=n + 1)
    np.testing.assert_allclose(encoder(take(batch, rows)), code[rows], rtol=1e-5, atol=1e-6)


def spaces_survive_a_round_trip(data: st.DataObject) -> None:
    space, seed = data.draw(SPACES), data.draw(SEEDS)
    again = space_from_json(space_to_json(space))
    assert again == space
    batch = batch_of(space, 5, seed)
    np.testing.assert_array_equal(SpaceEncoder(again)(batch), SpaceEncoder(space)(batch))


def elements_can_be_read_from_their_code(data: st.DataObject) -> None:
    space, seed = data.draw(boxes() | categories()), data.draw(SEEDS)
    encoder = SpaceEncoder(space)
    batch = np.asarray(batch_of(space, 20, seed)).reshape(20, -1)
    code = encoder(batch_of(space, 20, seed))
    if isinstance(space, spaces.Box):
        np.testing.assert_array_equal(code, batch.astype(code.dtype))
    else:
        same = (batch[:, None] == batch[None]).all(axis=2)
        np.testing.assert_array_equal((code[:, None] == code[None]).all(axis=2), same)


def actions_survive_scaling(data: st.DataObject) -> None:
    low = data.draw(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4))
    width = data.draw(st.floats(0.125, 1e3, width=32))
    space = spaces.Box(np.array(low, np.float32), np.array(low, np.float32) + np.float32(width), dtype=np.float32)
    actions = batch_of(space, 10, data.draw(SEEDS))
    scaled = scale_actions(actions, space)
    assert np.abs(scaled).max() <= 1.0
    np.testing.assert_allclose(unscale_actions(scaled, space), actions, atol=1e-3 * width, rtol=1e-5)


def policies_can_read_what_recipes_give_them(data: st.DataObject) -> None:
    space = policy_space(data.draw(SPACES))
    assert policy_space(space) == space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    for part in parts:
        assert part.shape != () or isinstance(part, spaces.Discrete)
        assert isinstance(part, spaces.Box) or spaces.flatdim(part) <= 4096


def scoring_is_pure_and_permutes_with_the_batch(data: st.DataObject) -> None:
    name, space, seed = data.draw(st.sampled_from(sorted(TINY))), data.draw(SPACES), data.draw(SEEDS)
    model = tiny(name, space, seed)
    for step, call in enumerate(data.draw(st.lists(st.sampled_from(["fit", "score", "reward"]), min_size=2, max_size=6))):
        n = data.draw(st.integers(1, 40))
        batch, actions = batch_of(space, n, seed + step), batch_of(ACTIONS, n, seed + step)
        if call == "fit":
            model.fit(batch, actions, gradient_steps=data.draw(st.integers(0, 2)))
            continue
        before = state_of(model)
        function = model.score if call == "score" else model.reward
        answer = function(batch, actions)
        assert answer.shape == (n,) and answer.dtype == np.float32 and np.isfinite(answer).all()
        assert_same(function(batch, actions), answer, exactly=True)
        order = np.random.default_rng(seed).permutation(n)
        assert_same(function(take(batch, order), actions[order]), answer[order])
        assert state_of(model) == before


def saved_models_go_on_alike(data: st.DataObject) -> None:
    name, space, seed = data.draw(st.sampled_from(sorted(TINY))), data.draw(SPACES), data.draw(SEEDS)
    model = tiny(name, space, seed)
    states, actions = batch_of(space, 24, seed), batch_of(ACTIONS, 24, seed)
    for _ in range(data.draw(st.integers(0, 3))):
        model.fit(states, actions)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        again = load_reward(Path(folder) / "model", device="cpu")
    for _ in range(2):
        assert_same(again.score(states, actions), model.score(states, actions), exactly=True)
        assert again.fit(states, actions) == model.fit(states, actions)


def one_env_in_a_vec_wrapper_equals_the_plain_wrapper(data: st.DataObject) -> None:
    name, space, seed = data.draw(st.sampled_from(sorted(TINY))), data.draw(SPACES), data.draw(SEEDS)
    kwargs: dict[str, Any] = {
        "learning_starts": data.draw(st.integers(0, 10)),
        "train_freq": data.draw(st.integers(1, 8)),
        "gradient_steps": data.draw(st.integers(0, 2)),
        "buffer_size": data.draw(st.integers(1, 30)),
        "intrinsic_coef": 0.5,
        "extrinsic_coef": data.draw(st.sampled_from([0.0, 0.25])),
        "batch_size": 8,
        "seed": seed,
    }
    plain = ScoreRewardWrapper(RandomEnv(space, seed), tiny(name, space, seed), **kwargs)
    vec = VecScoreRewardWrapper(DummyVecEnv([lambda: RandomEnv(space, seed)]), tiny(name, space, seed), **kwargs)
    actions = batch_of(ACTIONS, 25, seed)
    plain.reset()
    vec.reset()
    for i, action in enumerate(actions):
        plain.frozen = vec.frozen = i % 9 == 8
        _, reward, terminated, truncated, info = plain.step(action)
        _, rewards, dones, infos = vec.step(action[None])
        assert rewards[0] == np.float32(reward) and bool(dones[0]) == (terminated or truncated)
        assert infos[0]["intrinsic_reward"] == info["intrinsic_reward"]
        if dones[0]:
            plain.reset()
    assert state_of(vec.reward_model) == state_of(plain.reward_model)  # type: ignore[arg-type]


def sampling_from_a_buffer_is_pure(data: st.DataObject) -> None:
    name, space, seed = data.draw(st.sampled_from(sorted(TINY))), data.draw(SPACES), data.draw(SEEDS)
    n_envs, capacity, n_steps = (data.draw(st.integers(1, high)) for high in (3, 12, 3))
    buffer_class = ScoreRewardDictReplayBuffer if isinstance(space, spaces.Dict) else ScoreRewardReplayBuffer
    buffer = buffer_class(
        capacity * n_envs,
        space,
        ACTIONS,
        device="cpu",
        n_envs=n_envs,
        reward=name,
        reward_kwargs={"seed": seed, **TINY[name]},
        batch_size=8,
        train_freq=data.draw(st.integers(1, 8)),
        n_steps=n_steps,
    )
    rng = np.random.default_rng(seed)
    for i in range(data.draw(st.integers(2, 20))):
        obs, next_obs = (batch_of(space, n_envs, seed + 2 * i + j) for j in range(2))
        infos = [{"TimeLimit.truncated": bool(rng.integers(2))} for _ in range(n_envs)]
        buffer.add(obs, next_obs, batch_of(ACTIONS, n_envs, i), rng.normal(size=n_envs), rng.random(n_envs) < 0.2, infos)

    def state() -> Any:
        arrays = [buffer.observations, buffer.actions, buffer.rewards, buffer.dones, buffer.pos, buffer.full]
        return plain([arrays, buffer.reward_model.to_tree(), buffer._rng.bit_generator.state, buffer._schedule.n_fits])  # type: ignore[attr-defined]

    random_state = np.random.get_state()
    before = state()
    first = buffer.sample(16)
    np.random.set_state(random_state)
    second = buffer.sample(16)
    np.random.set_state(random_state)
    assert state() == before
    assert th.equal(first.rewards, second.rewards) and th.equal(first.actions, second.actions)
    together = buffer.sample_minibatches(1, 16)[0]
    assert_same(together.rewards.numpy(), first.rewards.numpy())
    steps, envs = np.arange(buffer.size()), np.zeros(buffer.size(), dtype=int)
    rewards = buffer.intrinsic_rewards(steps, envs)
    order = rng.permutation(len(steps))
    assert_same(buffer.intrinsic_rewards(steps[order], envs), rewards[order])


def diffusion_policies_act_inside_the_bounds_and_reload(data: st.DataObject) -> None:
    seed, dim, high = data.draw(SEEDS), data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1.0, np.inf]))
    observations = spaces.Box(-1.0, high, (dim,), data.draw(FLOATS))
    low = np.array(data.draw(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=3)), np.float32)
    actions = spaces.Box(low, low + 3.0, dtype=data.draw(FLOATS))
    actor = DiffusionActor(observations, actions, net_arch=[8], n_sampling_steps=data.draw(st.integers(1, 4)), seed=seed)
    n = data.draw(st.integers(1, 12))
    batch = batch_of(observations, n, seed)
    if data.draw(st.booleans()):
        actor.fit(batch, batch_of(actions, n, seed), gradient_steps=2, batch_size=8)
    generator = actor.model.generator.get_state()
    greedy = actor.predict(batch, deterministic=True)
    assert th.equal(actor.model.generator.get_state(), generator)  # needs no noise
    assert greedy.shape == (n, *actions.shape) and greedy.dtype == actions.dtype
    for chosen in (greedy, actor.predict(batch)):
        assert (chosen >= actions.low).all() and (chosen <= actions.high).all()
    order = np.random.default_rng(seed).permutation(n)
    assert_same(actor.predict(batch[order], deterministic=True), greedy[order])
    assert_same(actor.predict(batch[0], deterministic=True), greedy[0])
    with tempfile.TemporaryDirectory() as folder:
        actor.save(Path(folder) / "policy.safetensors")
        again = DiffusionActor.load(Path(folder) / "policy.safetensors", device="cpu")
    assert_same(again.predict(batch, deterministic=True), greedy, exactly=True)


PROPERTIES = [
    encoder_maps_rows_one_by_one,
    spaces_survive_a_round_trip,
    elements_can_be_read_from_their_code,
    actions_survive_scaling,
    policies_can_read_what_recipes_give_them,
    scoring_is_pure_and_permutes_with_the_batch,
    saved_models_go_on_alike,
    one_env_in_a_vec_wrapper_equals_the_plain_wrapper,
    sampling_from_a_buffer_is_pure,
    diffusion_policies_act_inside_the_bounds_and_reload,
]
of_properties = pytest.mark.parametrize("property_", PROPERTIES, ids=lambda function: function.__name__)


def test_every_built_in_reward_is_drawn():
    assert set(TINY) == set(REWARDS)


@pytest.mark.slow
@of_properties
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_property(property_, data):
    property_(data)


@pytest.mark.long
@of_properties
@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data())
def test_property_at_length(property_, data):
    property_(data)
