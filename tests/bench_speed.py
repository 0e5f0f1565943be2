"""
Speed of the parts of exploration, as ratios to an update of Stable-Baselines3's SAC in the same run: ``make bench``.

A ratio above its limit fails. Limits are one and a half times the ratios measured when they were set, so that they survive
noise and other machines; the table that is printed shows the ratios themselves.
"""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from sb3_exdm import FusedSAC, ScoreRewardReplayBuffer
from sb3_exdm.runs.envs import EnvSource, normalized
from sb3_exdm.runs.hyperparams import build_algorithm, default_profile, pretrain_hyperparams

pytest.importorskip("pytest_benchmark")

SIZES = {"maze": "Maze2d-SquareLarge-v0", "walker": "URLB/walker-walk-v0"}
N_ENVS = 8
BATCH_SIZE = 256
REFERENCE = "update of SAC"
LIMITS: dict[str, dict[str, float]] = {
    "maze": {
        "fused update": 0.57,
        "iteration with rewards, fused": 1.9,
        "rewards of a batch": 0.2,
        "gradient step of the reward": 0.36,
        "acting in 8 environments": 0.05,
    },
    "walker": {
        "fused update": 0.8,
        "iteration with rewards, fused": 1.7,
        "rewards of a batch": 0.24,
        "gradient step of the reward": 0.21,
        "acting in 8 environments": 0.04,
    },
}
"""Largest ratios to the reference, by size and part."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(n_threads)


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    if request.param == "walker":
        pytest.importorskip("dm_control")
    return request.param


@pytest.fixture(scope="module")
def medians(size):
    """Median seconds by part; prints the ratios at the end."""
    seconds: dict[str, float] = {}
    yield seconds
    print(f"\n\n{size} size, ratios to an update of Stable-Baselines3's SAC, {1e3 * seconds[REFERENCE]:.2f} ms:")
    for part, value in seconds.items():
        print(f"  {part:<40}{value / seconds[REFERENCE]:6.2f}")


def make_model(size: str, algorithm: type[SAC], **kwargs) -> SAC:
    source = EnvSource.of(SIZES[size])
    env = normalized(source.make_vec(N_ENVS, 0, {}))
    profile = default_profile(env.observation_space)
    hyperparams = pretrain_hyperparams("sac", profile, env.observation_space, env.action_space)
    hyperparams.update(batch_size=BATCH_SIZE, gradient_steps=1, buffer_size=20_000, learning_starts=800)
    model = build_algorithm(algorithm, env, hyperparams, seed=0, device="cpu", **kwargs)
    model.set_logger(configure(None, []))
    return model.learn(1600)


@pytest.fixture(scope="module")
def plain(size):
    return make_model(size, SAC)


@pytest.fixture(scope="module")
def fused(size):
    return make_model(size, FusedSAC)


@pytest.fixture(scope="module")
def explorer(size):
    kwargs = {"replay_buffer_class": ScoreRewardReplayBuffer, "replay_buffer_kwargs": {"reward_kwargs": {"seed": 0}}}
    return make_model(size, FusedSAC, **kwargs)


@pytest.fixture(scope="module")
def states(explorer):
    observations = explorer.replay_buffer.observations[: explorer.replay_buffer.size()]
    return observations.reshape(-1, observations.shape[-1])[:BATCH_SIZE]


@pytest.mark.parametrize(
    "part",
    [
        REFERENCE,
        "fused update",
        "iteration of SAC",
        "iteration with rewards, fused",
        "rewards of a batch",
        "gradient step of the reward",
        "acting in 8 environments",
        "step of 8 environments",
    ],
)
def test_speed(part, size, plain, fused, explorer, states, medians, benchmark):
    reward_model, env = explorer.replay_buffer.reward_model, explorer.get_env()
    observations = explorer._last_obs
    actions = np.stack([explorer.action_space.sample() for _ in range(N_ENVS)])

    def iterations(model: SAC) -> None:
        model.learn(50 * N_ENVS, reset_num_timesteps=False)

    call, n_calls = {
        REFERENCE: (lambda: plain.train(1, BATCH_SIZE), 1),
        "fused update": (lambda: fused.train(1, BATCH_SIZE), 1),
        "iteration of SAC": (lambda: iterations(plain), 50),
        "iteration with rewards, fused": (lambda: iterations(explorer), 50),
        "rewards of a batch": (lambda: reward_model.reward(states), 1),
        "gradient step of the reward": (lambda: reward_model.fit(states), 1),
        "acting in 8 environments": (lambda: explorer.predict(observations), 1),
        "step of 8 environments": (lambda: env.step(actions), 1),
    }[part]
    benchmark.extra_info["size"] = size
    benchmark.pedantic(call, rounds=5 if n_calls > 1 else 200, warmup_rounds=1)
    medians[part] = benchmark.stats.stats.median / n_calls
    limit = LIMITS[size].get(part)
    if limit is not None:
        assert medians[part] < limit * medians[REFERENCE], f"{part} takes more than {limit} updates of SAC"
