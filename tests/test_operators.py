"""Policy improvement operators against closed forms, and on a sparse task with recorded transitions."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_exdm import DiffusionFinetuneCallback, FinetuneReplayBuffer
from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.finetuning.critics import Batch
from sb3_exdm.finetuning.operators import make_operator
from sb3_exdm.finetuning.operators.gradient import box_posterior
from sb3_exdm.policies import DiffusionPolicy


class Quadratic(nn.Module):
    """Two critics that agree on Q = -|a - best|^2."""

    def __init__(self, best: th.Tensor) -> None:
        super().__init__()
        self.best = best

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return -(actions - self.best).square().sum(dim=1).expand(2, -1)


class Corridor(gym.Env):
    """A step of at most 0.1 to the left or right; 1 for reaching the right end, where it ends, and 0 before."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.step_count = 0.1, 0
        return np.array([self.position], np.float32), {}

    def step(self, action):
        self.position = float(np.clip(self.position + 0.1 * action[0], 0.0, 1.0))
        self.step_count += 1
        success = self.position > 0.9
        return np.array([self.position], np.float32), float(success), success, self.step_count == 20, {}


def corridor_transitions(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random actions from random positions, one environment each."""
    rng = np.random.default_rng(seed)
    observations, actions = rng.uniform(0.0, 0.9, (n, 1)), rng.uniform(-1.0, 1.0, (n, 1))
    reached = np.clip(observations + 0.1 * actions, 0.0, 1.0)
    success = reached[:, 0] > 0.9
    return {
        "observations": observations.astype(np.float32),
        "next_observations": reached.astype(np.float32),
        "actions": actions.astype(np.float32),
        "rewards": success.astype(np.float32),
        "terminated": success,
        "truncated": np.ones(n, bool) & ~success,
        "env_indices": np.arange(n),
    }


@pytest.mark.parametrize("std", [0.02, 0.5, 150.0])
def test_box_posterior_is_that_of_a_fine_grid(std):
    alpha = th.tensor([[1.0 / (1.0 + std**2) ** 0.5]])
    center = th.tensor([[0.0], [0.4], [-0.97], [1.0 + std]])
    grid = th.linspace(-1.0, 1.0, 20_001, dtype=th.float64)
    weights = (-0.5 * ((grid - center) / std).square()).softmax(dim=1)
    mean = (weights * grid).sum(dim=1, keepdim=True)
    variance = (weights * (grid - mean).square()).sum(dim=1, keepdim=True)
    found = box_posterior(alpha * center, alpha, std * alpha)
    th.testing.assert_close(found[0].double(), mean, atol=1e-4, rtol=1e-3)
    th.testing.assert_close(found[1].double(), variance, atol=1e-4, rtol=1e-3)


def test_bound_of_a_model_is_the_default_and_saved():
    model = DiffusionModel(2, seed=0)
    noise = 5.0 * th.randn(50, 2, generator=th.Generator().manual_seed(0))
    free, bounded = model.sample(50, noise=noise), model.sample(50, noise=noise, bound=0.5)
    model.bound = 0.5
    assert th.equal(model.sample(50, noise=noise), bounded) and not th.equal(free, bounded)
    other = DiffusionModel(2, seed=1)
    other.load_training_state(model.training_state())
    assert other.bound == 0.5
    del (old := model.training_state())["bound"]
    other.load_training_state(old)
    assert other.bound is None


@pytest.mark.parametrize("best", [(0.3, -0.4), (-0.7, 0.6)])
def test_qsm_concentrates_at_the_best_action(best):
    th.manual_seed(0)
    policy = DiffusionPolicy(spaces.Box(0.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,)), lambda _: 3e-3, diffusion_arch=[64, 64])
    operator = make_operator("qsm", policy)
    policy.critic = Quadratic(th.tensor(best))
    features = policy.features(th.zeros(128, 1))
    for _ in range(600):
        operator.improve(Batch(features, 2.0 * th.rand(128, 2) - 1.0, th.zeros(128), features, th.zeros(128)))
    actions = policy.actor.sample_actions(policy.features(th.zeros(1000, 1)), 1)[:, 0]
    assert (actions.mean(dim=0) - th.tensor(best)).abs().max() < 0.2
    assert actions.std(dim=0).max() < 0.2
    assert (actions.abs() > 0.98).any(dim=1).float().mean() < 0.15
    # The restoring term alone keeps the samples near the box.
    raw = policy.actor.model.sample(1000, policy.features(th.zeros(1000, 1)), n_sampling_steps=5, grid="quadratic", bound=1e9)
    assert raw.abs().median() < 1.5


def test_qsm_learns_a_sparse_task_from_recorded_transitions():
    env = DummyVecEnv([Corridor])
    model = SAC(
        "DiffusionPolicy",
        env,
        policy_kwargs={"net_arch": [32, 32], "diffusion_arch": [32, 32]},
        replay_buffer_class=FinetuneReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.9},
        learning_rate=3e-3,
        batch_size=64,
        buffer_size=500,
        gamma=0.9,
        tau=0.05,
        learning_starts=1000,
        seed=0,
        device="cpu",
    )
    model.replay_buffer.add_offline(corridor_transitions(2000))
    model.learn(1, callback=DiffusionFinetuneCallback("qsm", offline_updates=800))
    assert model.policy.actor.model.bound == 1.0
    for deterministic in (True, False):
        obs, done, reward = env.reset(), False, 0.0
        while not done:
            action, _ = model.predict(obs, deterministic=deterministic)
            obs, rewards, dones, _ = env.step(action)
            done, reward = dones[0], rewards[0]
        assert reward == 1.0
    actions, _ = model.predict(np.linspace(0.2, 0.8, 100, dtype=np.float32)[:, None])
    assert (actions > 0.0).mean() > 0.9


@pytest.mark.parametrize("name", ["exdm", "weighted"])
def test_number_of_cached_actions(name):
    policy = DiffusionPolicy(spaces.Box(0.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,)), lambda _: 1e-3, diffusion_arch=[8])
    assert make_operator(name, policy).n_cached_actions == 32
    assert make_operator(name, policy, n_cached_actions=4).n_cached_actions == 4
    with pytest.raises(ValueError, match=r"n_cached_actions'\] must be an integer of at least 2"):
        make_operator(name, policy, n_cached_actions=1)
