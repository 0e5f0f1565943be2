"""The replay buffer for adapting to a task, against plain loops, and the rewards that recorded transitions get."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_exdm.envs.maze2d import Maze2dSB3VecEnv
from sb3_exdm.finetuning.relabel import relabel
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer, FinetuneSamples

OBSERVATION = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
ACTION = spaces.Box(np.array([-2.0, 0.0], dtype=np.float32), np.array([2.0, 1.0], dtype=np.float32))
GAMMA = 0.9


class Walk:
    """Random episodes. Every observation occurs once, so that a sample tells which transition it is."""

    def __init__(self, n_envs: int, seed: int = 0, p_success: float = 0.1, p_end: float = 0.15) -> None:
        self.rng = np.random.default_rng(seed)
        self.n_envs, self.p_success, self.p_end = n_envs, p_success, p_end
        self.rows: list[list[dict]] = [[] for _ in range(n_envs)]
        self.obs = self.rng.normal(size=(n_envs, 2))

    def step(self, *buffers: ReplayBuffer, reset: bool = False) -> None:
        """One step into the buffers; with ``reset`` the environments are reset before, without an end of the episode."""
        rng, n = self.rng, self.n_envs
        if reset:
            self.obs = rng.normal(size=(n, 2))
            for rows in self.rows:
                rows[-1]["end"] = True
        next_obs, actions = rng.normal(size=(n, 2)), rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        rewards = (rng.random(n) < self.p_success) * rng.uniform(0.5, 1.5, n) - (rng.random(n) < 0.1)
        dones = rng.random(n) < self.p_end
        timeouts = dones & (rng.random(n) < 0.5)
        for buffer in buffers:
            infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts]
            buffer.add(self.obs, next_obs, actions, rewards, dones, infos)
        for env in range(n):
            row = dict(obs=self.obs[env], next_obs=next_obs[env], action=actions[env], reward=np.float32(rewards[env]))
            row |= dict(terminated=bool(dones[env] and not timeouts[env]), truncated=bool(timeouts[env]), end=bool(dones[env]))
            self.rows[env].append(row)
        self.obs = np.where(dones[:, None], rng.normal(size=(n, 2)), next_obs)

    def last(self, n_steps: int) -> list[list[dict]]:
        """What a ring of that length still holds."""
        return [rows[-n_steps:] for rows in self.rows]


def expected_samples(episodes: list[list[dict]], n_steps: int, horizon: int) -> dict[tuple, dict]:
    """By observation: the n-step return and whether a success is near, by loops over every row."""
    found = {}
    for rows in episodes:
        for start, row in enumerate(rows):
            total, stop = 0.0, start
            for k in range(n_steps):
                stop = start + k
                total += GAMMA**k * rows[stop]["reward"]
                if rows[stop]["end"] or stop == len(rows) - 1:
                    break
            near = False
            for later in range(start, min(start + horizon, len(rows) - 1) + 1):
                near |= bool(rows[later]["reward"] > 0)
                if near or rows[later]["end"]:
                    break
            found[tuple(row["obs"])] = dict(
                action=row["action"],
                next_obs=rows[stop]["next_obs"],
                done=float(rows[stop]["terminated"]),
                reward=total,
                discount=GAMMA ** (stop - start + 1),
                near_success=near,
                first_next_obs=row["next_obs"],
            )
    return found


def check_batch(batch: FinetuneSamples, expected: dict[tuple, dict]) -> set[tuple]:
    keys = [tuple(observation) for observation in batch.observations.numpy()]
    for name, field in (("action", "actions"), ("next_obs", "next_observations")):
        np.testing.assert_array_equal(getattr(batch, field).numpy(), [expected[key][name] for key in keys])
    for name, field in (("done", "dones"), ("reward", "rewards"), ("discount", "discounts")):
        values = getattr(batch, field)
        assert values.shape == (len(keys), 1) and values.dtype == th.float32
        np.testing.assert_allclose(values[:, 0].numpy(), [expected[key][name] for key in keys], rtol=1e-5, atol=1e-6)
    return set(keys)


def make_buffer(buffer_size: int = 60, n_envs: int = 3, **kwargs) -> FinetuneReplayBuffer:
    return FinetuneReplayBuffer(buffer_size, OBSERVATION, ACTION, "cpu", n_envs, **{"gamma": GAMMA, "seed": 0, **kwargs})


def filled(n_steps_added: int, *, walk_kwargs: dict | None = None, **kwargs) -> tuple[FinetuneReplayBuffer, Walk]:
    buffer = make_buffer(**kwargs)
    walk = Walk(buffer.n_envs, **(walk_kwargs or {}))
    for _ in range(n_steps_added):
        walk.step(buffer)
    return buffer, walk


def recorded(walk: Walk) -> dict[str, np.ndarray]:
    """The rows of a walk in the order of time, as pre-training records them."""
    rows = [(env, row) for step in zip(*walk.rows, strict=True) for env, row in enumerate(step)]
    actions = np.array([row["action"] for _, row in rows])
    return {
        "observations": np.array([row["obs"] for _, row in rows]),
        "next_observations": np.array([row["next_obs"] for _, row in rows]),
        "actions": ACTION.low + (actions + 1) / 2 * (ACTION.high - ACTION.low),
        "rewards": np.array([row["reward"] for _, row in rows]),
        "terminated": np.array([row["terminated"] for _, row in rows]),
        "truncated": np.array([row["truncated"] for _, row in rows]),
        "env_indices": np.array([env for env, _ in rows], dtype=np.int16),
    }


def near_success_keys(buffer: FinetuneReplayBuffer) -> set[tuple]:
    assert buffer.n_near_success == len(buffer._success_index.near_success_indices()), "nothing but the ring is looked at here"
    observations = buffer.observations.reshape(-1, 2)[buffer._success_index.near_success_indices()]
    return {tuple(observation) for observation in observations}


@pytest.mark.parametrize("n_steps", [1, 3, 7])
@pytest.mark.parametrize("n_added", [1, 13, 20, 33, 40])  # the ring has 20 steps
def test_returns_are_those_of_a_loop(n_steps, n_added):
    buffer, walk = filled(n_added, n_steps=n_steps)
    expected = expected_samples(walk.last(20), n_steps, 30)
    seen = check_batch(buffer.sample(2000), expected)
    assert seen == set(expected), "every row must be drawn, and no other"


def test_one_step_batches_hold_what_the_ordinary_buffer_holds():
    buffer, other = make_buffer(n_envs=1), ReplayBuffer(60, OBSERVATION, ACTION, "cpu")
    walk = Walk(1)
    for _ in range(25):
        walk.step(buffer, other)
    rows = np.arange(25)
    ours, theirs = buffer._get_samples(rows), other._get_samples(rows)
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        assert (
            th.equal(getattr(ours, name), getattr(theirs, name)) and getattr(ours, name).dtype == getattr(theirs, name).dtype
        )
    assert (ours.discounts == np.float32(GAMMA)).all() and ours.cached_actions is None and ours.next_cached_actions is None


def test_without_timeout_handling_a_time_limit_is_an_end():
    buffer, walk = filled(15, handle_timeout_termination=False)
    batch = buffer.sample(500)
    ends = {tuple(row["obs"]): row["end"] for rows in walk.rows for row in rows}
    assert batch.dones[:, 0].tolist() == [float(ends[tuple(key)]) for key in batch.observations.numpy()]


@pytest.mark.parametrize("horizon", [0, 2, 50])
@pytest.mark.parametrize("buffer_size", [3, 24, 60])
def test_transitions_near_a_success_are_those_of_a_loop_after_every_step(horizon, buffer_size):
    buffer, walk = make_buffer(buffer_size, success_horizon=horizon), Walk(3, p_success=0.05)
    for step in range(70):
        walk.step(buffer, reset=step in (31, 32))
        expected = expected_samples(walk.last(buffer_size // 3), 1, horizon)
        assert near_success_keys(buffer) == {key for key, row in expected.items() if row["near_success"]}
    copy = FinetuneReplayBuffer.from_buffer(buffer, success_horizon=horizon)
    assert near_success_keys(copy) == near_success_keys(buffer)


def test_a_reset_without_an_end_begins_an_episode():
    buffer, walk = make_buffer(n_steps=5), Walk(3, p_end=0.0)
    for step in range(15):
        walk.step(buffer, reset=step in (4, 5, 12))
    expected = expected_samples(walk.last(20), 5, 30)
    assert check_batch(buffer.sample(1000), expected) == set(expected)
    copy = FinetuneReplayBuffer.from_buffer(buffer)
    assert check_batch(copy.sample(1000), expected) == set(expected)


def test_oversampling_of_successes():
    buffer, walk = filled(400, buffer_size=1200, success_horizon=2, success_fraction=0.25, walk_kwargs={"p_success": 0.01})
    expected = expected_samples(walk.rows, 1, 2)
    share = np.mean([row["near_success"] for row in expected.values()])
    assert 0 < share < 0.1
    n_drawn = [
        np.mean([expected[tuple(key)]["near_success"] for key in buffer.sample(100).observations.numpy()]) for _ in range(100)
    ]
    assert min(n_drawn) >= 0.25
    assert np.mean(n_drawn) == pytest.approx(0.25 + 0.75 * share, abs=0.02)
    buffer.success_fraction = 1.0
    batch = buffer.sample(5000)
    counts = np.unique(batch.observations.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == buffer.n_near_success and counts.min() > 0.5 * counts.mean(), "uniform over those near a success"


def test_no_oversampling_if_rewards_are_not_sparse():
    buffer, walk = filled(100, buffer_size=300, success_fraction=1.0, walk_kwargs={"p_success": 0.6})
    assert buffer.n_near_success > 150
    assert len(check_batch(buffer.sample(5000), expected_samples(walk.rows, 1, 30))) == 300


@pytest.mark.parametrize("n_steps", [1, 4])
def test_offline_rows(n_steps):
    walk = Walk(4, seed=1)
    for _ in range(30):
        walk.step()
    walk.rows[2][-1]["end"] = walk.rows[2][-1]["truncated"] = False  # recording may stop within an episode
    transitions = recorded(walk)
    keep = np.ones(120, dtype=bool)
    keep[[1, 117]] = False  # nor need all environments have as many rows
    first, last = walk.rows[1].pop(0), walk.rows[1].pop()
    transitions = {key: value[keep] for key, value in transitions.items()} | {"visits": np.zeros(5)}
    buffer = make_buffer(n_steps=n_steps, success_horizon=3)
    buffer.add_offline(transitions)
    expected = expected_samples(walk.rows, n_steps, 3)
    assert tuple(first["obs"]) not in expected and tuple(last["obs"]) not in expected
    assert buffer.n_offline == len(expected) == 118 and buffer.n_online == 0
    batch = buffer.sample(3000)
    np.testing.assert_allclose(
        batch.actions.numpy(), [expected[tuple(key)]["action"] for key in batch.observations.numpy()], atol=1e-6
    )
    for key, action in zip(batch.observations.numpy(), batch.actions.numpy(), strict=True):
        expected[tuple(key)]["action"] = action  # the rounding of scaling there and back
    assert check_batch(batch, expected) == set(expected)
    assert buffer.n_near_success == sum(row["near_success"] for row in expected.values())
    # A second part is nobody's continuation.
    more = Walk(2, seed=2, p_end=0.0)
    for _ in range(5):
        more.step()
    buffer.add_offline(recorded(more))
    expected |= expected_samples(more.rows, n_steps, 3)
    batch = buffer.sample(3000)
    for key, action in zip(batch.observations.numpy(), batch.actions.numpy(), strict=True):
        expected[tuple(key)]["action"] = action
    assert check_batch(batch, expected) == set(expected)


@pytest.mark.parametrize("offline_fraction", [0.0, 0.3, 1.0])
def test_mix_of_offline_and_online_rows(offline_fraction):
    offline = Walk(2, seed=1, p_success=0.0)
    for _ in range(50):
        offline.step()
    known = {tuple(row["obs"]) for rows in offline.rows for row in rows}

    def n_offline(buffer: FinetuneReplayBuffer, batch_size: int = 200) -> int:
        batch = buffer.sample(batch_size)
        assert len(batch.rewards) == batch_size
        return sum(tuple(key) in known for key in batch.observations.numpy())

    buffer = make_buffer(offline_fraction=offline_fraction, success_fraction=0.2, success_horizon=1)
    buffer.add_offline(recorded(offline))
    assert n_offline(buffer) == 200, "the ring is empty"
    walk = Walk(3, p_success=0.0)
    for _ in range(30):
        walk.step(buffer)
    assert n_offline(buffer) == round(offline_fraction * 200)
    walk.p_success = 0.1
    while buffer.n_near_success == 0:
        walk.step(buffer)
    assert n_offline(buffer) == round(offline_fraction * 160), "all successes are online"
    buffer.reset()
    assert (buffer.n_online, buffer.n_offline, buffer.n_near_success) == (0, 100, 0) and n_offline(buffer) == 200
    assert sum(tuple(key) in known for key in filled(20)[0].sample(100).observations.numpy()) == 0


def test_oversampled_transitions_come_from_both_parts():
    buffer, walk = filled(20, success_horizon=1, success_fraction=1.0)
    offline = Walk(2, seed=1)
    for _ in range(40):
        offline.step()
    buffer.add_offline(recorded(offline))
    expected = expected_samples(walk.rows, 1, 1) | expected_samples(offline.rows, 1, 1)
    seen = {tuple(key) for key in buffer.sample(2000).observations.numpy()}
    assert seen == {key for key, row in expected.items() if row["near_success"]}


@pytest.mark.parametrize("n_steps", [1, 3])
def test_vec_normalize(n_steps):
    env = VecNormalize(make_vec_env("Pendulum-v1", 1), gamma=GAMMA)
    env.obs_rms.mean, env.obs_rms.var = np.full(3, 0.3), np.full(3, 4.0)
    env.ret_rms.var = np.array(9.0)
    space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
    buffer = FinetuneReplayBuffer(40, space, ACTION, "cpu", n_steps=n_steps, gamma=GAMMA, seed=0)
    other = NStepReplayBuffer(40, space, ACTION, "cpu", n_steps=n_steps, gamma=GAMMA)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(1, 3)).astype(np.float32)
    for step in range(55):
        next_obs = rng.normal(size=(1, 3)).astype(np.float32)
        row = (obs, next_obs, rng.uniform(-1, 1, (1, 2)), 20 * rng.normal(size=1), np.array([step % 6 == 5]))
        for each in (buffer, other):
            each.add(*row, [{"TimeLimit.truncated": step % 12 == 5}])
        obs = next_obs
    rows = np.arange(40)
    ours, theirs = buffer._get_samples(rows, env), other._get_samples(rows, env)
    for name in ("observations", "actions", "next_observations", "dones", "rewards", "discounts"):
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6)
    assert buffer.sample(64, env).observations.dtype == th.float32


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 2])
def test_sac_learns_with_it(n_envs):
    settings = {"n_steps": 3, "success_horizon": 5, "seed": 1}
    env = Maze2dSB3VecEnv("SquareA", n_envs, max_episode_steps=10)
    model = SAC(
        "MlpPolicy",
        env,
        replay_buffer_class=FinetuneReplayBuffer,
        replay_buffer_kwargs=settings,
        buffer_size=60,
        learning_starts=20,
        policy_kwargs={"net_arch": [8]},
        batch_size=16,
        seed=0,
        device="cpu",
    )
    model.learn(100)
    buffer = model.replay_buffer
    assert isinstance(buffer, FinetuneReplayBuffer) and buffer.full and buffer.n_online == 60
    assert model._n_updates > 0 and np.isfinite(model.logger.name_to_value["train/critic_loss"])


def test_seeds_and_the_global_generator():
    batches = [filled(20)[0].sample(50).observations for _ in range(2)]
    assert th.equal(*batches)
    np.random.seed(3)
    buffer, _ = filled(20, seed=None)
    state = np.random.get_state()[1].copy()
    first = buffer.sample(50).observations
    assert (np.random.get_state()[1] == state).all(), "sampling draws from the buffer's own generator"
    np.random.seed(3)
    assert th.equal(filled(20, seed=None)[0].sample(50).observations, first)
    assert not th.equal(filled(20, seed=4)[0].sample(50).observations, batches[0])


def test_saved_and_loaded_buffers_go_on_alike(tmp_path):
    buffer, walk = filled(30, n_steps=3, success_horizon=2)
    offline = Walk(2, seed=1)
    for _ in range(20):
        offline.step()
    buffer.add_offline(recorded(offline))
    buffer.sample(10)
    buffer.cache_actions(sampler, 4)
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    loaded = load_from_pkl(tmp_path / "buffer.pkl")
    assert loaded.sample(5).cached_actions is None
    buffer.clear_cached_actions()
    buffer.sample(5)
    for _ in range(25):
        walk.step(buffer, loaded)
        for ours, theirs in zip(buffer.sample(40)[:6], loaded.sample(40)[:6], strict=True):
            assert th.equal(ours, theirs)
    assert loaded.n_near_success == buffer.n_near_success > 0


@pytest.mark.parametrize("n_added", [0, 7, 20, 33])
def test_from_buffer(n_added):
    other = NStepReplayBuffer(60, OBSERVATION, ACTION, "cpu", n_envs=3, n_steps=4, gamma=GAMMA)
    walk = Walk(3)
    for _ in range(n_added):
        walk.step(other)
    buffer = FinetuneReplayBuffer.from_buffer(other, seed=0, success_horizon=3)
    assert (buffer.n_steps, buffer.gamma, buffer.size()) == (4, GAMMA, other.size())
    for _ in range(6):  # and it goes on with the episodes
        walk.step(buffer)
    expected = expected_samples(walk.last(20), 4, 3)
    assert check_batch(buffer.sample(2000), expected) == set(expected)
    assert near_success_keys(buffer) == {key for key, row in expected.items() if row["near_success"]}
    assert FinetuneReplayBuffer.from_buffer(ReplayBuffer(60, OBSERVATION, ACTION, "cpu", n_envs=3), gamma=0.5).gamma == 0.5
    buffer.add_offline(recorded(walk))
    assert FinetuneReplayBuffer.from_buffer(buffer).n_offline == buffer.n_offline


def sampler(observations: np.ndarray, n_actions: int = 4) -> np.ndarray:
    """Actions that tell which observation they belong to."""
    return np.sin(observations[:, None, :] * np.arange(1, n_actions + 1)[:, None])


class CountingSampler:
    def __init__(self, n_actions: int = 4) -> None:
        self.n_actions, self.n_asked = n_actions, 0

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        self.n_asked += len(observations)
        assert len(observations) <= 16
        return sampler(observations, self.n_actions)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("next_observations", [False, True])
def test_cached_actions_belong_to_their_observations(n_steps, next_observations):
    buffer, walk = filled(14, n_steps=n_steps)
    offline = Walk(2, seed=1)
    for _ in range(10):
        offline.step()
    buffer.add_offline(recorded(offline))
    count, sides = CountingSampler(), 1 + next_observations

    def update_and_check(expected_calls: int, n_actions: int = 4) -> None:
        count.n_asked, count.n_actions = 0, n_actions
        buffer.cache_actions(count, n_actions, next_observations=next_observations, chunk_size=16)
        assert count.n_asked == sides * expected_calls
        batch = buffer.sample(500)
        assert batch.cached_actions.shape == (500, n_actions, 2) and batch.cached_actions.dtype == th.float32
        np.testing.assert_allclose(batch.cached_actions, sampler(batch.observations.numpy(), n_actions), atol=1e-6)
        if next_observations:
            np.testing.assert_allclose(
                batch.next_cached_actions, sampler(batch.next_observations.numpy(), n_actions), atol=1e-6
            )
        else:
            assert batch.next_cached_actions is None

    update_and_check(14 * 3 + 20)
    update_and_check(0)
    for _ in range(9):  # the last ones overwrite
        walk.step(buffer)
    update_and_check(9 * 3)
    for _ in range(45):
        walk.step(buffer)
    update_and_check(60)
    update_and_check(60 + 20, n_actions=2)
    buffer.add_offline(recorded(offline))
    update_and_check(40, n_actions=2)
    buffer.clear_cached_actions()
    assert buffer.sample(5).cached_actions is None
    update_and_check(60 + 40, n_actions=2)
    buffer.reset()
    walk.step(buffer)
    update_and_check(3, n_actions=2)


def test_cached_actions_can_be_extended_to_next_observations():
    buffer, _ = filled(14)
    count = CountingSampler()
    buffer.cache_actions(count, 4, chunk_size=16)
    buffer.cache_actions(count, 4, next_observations=True, chunk_size=16)
    assert count.n_asked == 2 * 42
    batch = buffer.sample(100)
    np.testing.assert_allclose(batch.next_cached_actions, sampler(batch.next_observations.numpy()), atol=1e-6)


def test_outdated_cached_actions_are_refused():
    buffer, walk = filled(5)
    buffer.cache_actions(sampler, 4)
    walk.step(buffer)
    with pytest.raises(RuntimeError, match="cache_actions before sampling"):
        buffer.sample(3)
    with pytest.raises(ValueError, match=r"must return actions .* = \(18, 3, 2\), got \(18, 4, 2\)"):
        buffer.cache_actions(sampler, 3)
    with pytest.raises(ValueError, match="actions holds nan"):
        buffer.cache_actions(lambda observations: sampler(observations) * np.nan, 4)
    with pytest.raises(ValueError, match="n_actions must be an integer of at least 1"):
        buffer.cache_actions(sampler, 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"optimize_memory_usage": True}, "does not support optimize_memory_usage=True"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1, got 0"),
        ({"success_horizon": -1}, "success_horizon must be an integer of at least 0"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"success_fraction": -0.1}, r"success_fraction must lie in \[0, 1\]"),
        ({"offline_fraction": float("nan")}, r"offline_fraction must lie in \[0, 1\]"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_buffer(**settings)


def test_bad_spaces_and_buffers():
    with pytest.raises(ValueError, match=r"needs Box observations.*FlattenObservation"):
        FinetuneReplayBuffer(10, spaces.Dict({"a": OBSERVATION}), ACTION)
    for action_space in (spaces.Discrete(3), spaces.Box(-np.inf, np.inf, (1,))):
        with pytest.raises(ValueError, match="needs a Box of actions with finite bounds"):
            FinetuneReplayBuffer(10, OBSERVATION, action_space)
    other = ReplayBuffer(10, OBSERVATION, ACTION, optimize_memory_usage=True, handle_timeout_termination=False)
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        FinetuneReplayBuffer.from_buffer(other)
    with pytest.raises(ValueError, match="buffer is empty"):
        make_buffer().sample(3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": None}, "lack rewards; they need observations"),
        ({"observations": np.zeros((10, 3))}, r"\['observations'\] must have the shape \(10, 2\).*got \(10, 3\)"),
        ({"actions": np.zeros((9, 2))}, r"\['actions'\] must have the shape \(10, 2\)"),
        ({"rewards": np.full(10, np.nan)}, r"\['rewards'\] holds nan"),
        ({"env_indices": np.zeros(10)}, "must be integers, got float64"),
    ],
)
def test_bad_offline_transitions(change, message):
    walk = Walk(2)
    for _ in range(5):
        walk.step()
    transitions = {key: value for key, value in {**recorded(walk), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        make_buffer().add_offline(transitions)
    with pytest.raises(ValueError, match="no transitions to add"):
        make_buffer().add_offline({key: value[:0] for key, value in recorded(walk).items()})


def maze_transitions(env, n_steps: int = 120) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random transitions in a VecEnv, and the rewards and ends that the env gave."""
    rng = np.random.default_rng(0)
    obs, steps = env.reset(), []
    for _ in range(n_steps):
        actions = rng.uniform(-0.95, 0.95, (env.num_envs, 2)).astype(np.float32)
        new_obs, rewards, dones, infos = env.step(actions)
        reached = np.array([info.get("terminal_observation", row) for info, row in zip(infos, new_obs, strict=True)])
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        steps.append((obs, actions, reached, rewards, dones & ~truncated, truncated))
        obs = new_obs
    names = ("observations", "actions", "next_observations", "rewards", "terminated", "truncated")
    told = {name: np.concatenate(column) for name, column in zip(names, zip(*steps, strict=True), strict=True)}
    told["env_indices"] = np.tile(np.arange(env.num_envs), n_steps)
    blank = {"rewards": np.zeros(len(told["rewards"])), "terminated": np.zeros(len(told["rewards"]), dtype=bool)}
    return {**told, **blank}, told


@pytest.mark.parametrize("reward_type", ["sparse", "dense"])
@pytest.mark.parametrize("terminate_on_success", [False, True])
@pytest.mark.parametrize("vectorized", [False, True])
def test_relabeling_gives_what_stepping_gives(reward_type, terminate_on_success, vectorized):
    settings = dict(reward_type=reward_type, goal_cell=(0, -1), goal_radius=0.4, terminate_on_success=terminate_on_success)
    if vectorized:
        env = Maze2dSB3VecEnv("SquareA", 3, seed=0, max_episode_steps=20, **settings)
    else:
        env = make_vec_env("Maze2d-SquareA-v0", 3, seed=0, env_kwargs=settings)
    blank, told = maze_transitions(env)
    before = {key: value.copy() for key, value in blank.items()}
    new = relabel(blank, VecNormalize(env))
    np.testing.assert_allclose(new["rewards"], told["rewards"], rtol=1e-6)
    for key in ("terminated", "truncated", "observations", "next_observations", "actions", "env_indices"):
        np.testing.assert_array_equal(new[key], told[key])
    assert told["terminated"].any() == terminate_on_success and told["truncated"].any()
    for key, value in blank.items():
        np.testing.assert_array_equal(value, before[key])
    buffer = FinetuneReplayBuffer(100, env.observation_space, env.action_space, "cpu", seed=0)
    buffer.add_offline(new)
    assert buffer.n_offline == 360 and len(buffer.sample(20).rewards) == 20


def test_relabeling_ends_episodes_where_the_task_does_and_keeps_recorded_ends():
    settings = {"goal_radius": 0.4, "terminate_on_success": True}
    env = Maze2dSB3VecEnv("SquareA", 2, seed=0, max_episode_steps=20, goal_cell=(0, -1), **settings)
    _, told = maze_transitions(env)
    assert told["terminated"].any()
    # For another task the goal of the first one is no end, but what was recorded there is cut all the same.
    new = relabel(told, Maze2dSB3VecEnv("SquareA", 2, goal_cell=(0, -2), **settings))
    done = told["terminated"] | told["truncated"]
    np.testing.assert_array_equal(new["terminated"], new["rewards"] == 1)
    assert new["terminated"].any() and (new["truncated"] & told["terminated"]).any()
    np.testing.assert_array_equal(new["truncated"], done & ~new["terminated"])


def test_setting_terminate_on_success_reaches_the_task():
    env = Maze2dSB3VecEnv("SquareA", 2)
    goals = np.stack([env.get_attr("goal")[0]] * 2)
    assert env.get_attr("task")[0].compute_terminated(goals, goals).tolist() == [False, False]
    env.set_attr("terminate_on_success", True)
    task = env.get_attr("task")[0]
    assert task.compute_terminated(goals, goals).tolist() == [True, True]
    assert task.compute_terminated(goals[0], goals[0], {}) is True and task.compute_terminated(goals[0] + 1, goals[0]) is False


def test_reward_functions():
    walk = Walk(2)
    for _ in range(10):
        walk.step()
    transitions = recorded(walk)

    def cost(observations, actions, next_observations):
        return -np.abs(actions).sum(axis=1) - (next_observations - observations)[:, 0]

    new = relabel(transitions, reward_fn=cost)
    expected = cost(transitions["observations"], transitions["actions"], transitions["next_observations"])
    np.testing.assert_allclose(new["rewards"], expected, rtol=1e-6)
    for key in ("terminated", "truncated"):
        np.testing.assert_array_equal(new[key], transitions[key])
    new = relabel(transitions, reward_fn=lambda o, a, n: (cost(o, a, n), n[:, 0] > 0))
    np.testing.assert_array_equal(new["terminated"], transitions["next_observations"][:, 0] > 0)
    done = transitions["terminated"] | transitions["truncated"]
    np.testing.assert_array_equal(new["truncated"], done & ~new["terminated"])
    with pytest.raises(ValueError, match=r"rewards of reward_fn must have the shape \(20,\).*got \(20, 1\)"):
        relabel(transitions, reward_fn=lambda o, a, n: n[:, :1])
    with pytest.raises(ValueError, match=r"terminated of reward_fn must have the shape \(20,\)"):
        relabel(transitions, reward_fn=lambda o, a, n: (n[:, 0], True))
    with pytest.raises(ValueError, match="rewards of reward_fn holds inf"):
        relabel(transitions, reward_fn=lambda o, a, n: n[:, 0] + np.inf)


class DictEnv(gym.Env):
    observation_space = spaces.Dict({"achieved_goal": OBSERVATION})
    action_space = ACTION


def test_tasks_without_rewards_for_transitions():
    walk = Walk(1)
    walk.step()
    transitions = recorded(walk)
    with pytest.raises(ValueError, match="Neither an environment nor a reward function"):
        relabel(transitions)
    with pytest.raises(ValueError, match=r"no attribute `task`.*Pass reward_fn"):
        relabel(transitions, make_vec_env("Pendulum-v1", 1))
    with pytest.raises(ValueError, match=r"Dict observations are not supported\. Pass reward_fn"):
        relabel(transitions, DummyVecEnv([DictEnv]))
    with pytest.raises(ValueError, match="lack truncated"):
        relabel({key: value for key, value in transitions.items() if key != "truncated"}, reward_fn=lambda o, a, n: n[:, 0])
    envs = DummyVecEnv([lambda cell=cell: gym.make("Maze2d-SquareA-v0", goal_cell=cell) for cell in ((0, 0), (0, -1))])
    with pytest.raises(ValueError, match="different goals"):
        relabel(transitions, envs)
    wide = {**transitions, "next_observations": np.zeros((1, 4))}
    with pytest.raises(ValueError, match=r"observations are more than positions\. Pass reward_fn"):
        relabel(wide, Maze2dSB3VecEnv("SquareA", 1))
