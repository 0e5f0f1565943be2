"""Holding a pre-trained actor: the divergence against its closed form, what it does to learning, and when it lets go."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_exdm.finetuning import WarmUpCallback
from sb3_exdm.finetuning.anchor import ActorAnchor
from sb3_exdm.finetuning.gaussian import ANCHOR_STRENGTH


class Reach(gym.Env):
    """The action should be 0.8 everywhere. Episodes have ten steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, reward_step: float = 1.0) -> None:
        self.reward_step = reward_step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return self._observation(), {}

    def step(self, action):
        self.step_count += 1
        reward = -self.reward_step * float(np.abs(action - 0.8).sum())
        return self._observation(), reward, self.step_count == 10, False, {}

    def _observation(self):
        return self.np_random.normal(size=3).astype(np.float32)


def make_model(algorithm=SAC, reward_step: float = 1.0, **kwargs):
    settings = {"learning_starts": 20, "batch_size": 32, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [16]}}
    return algorithm("MlpPolicy", Reach(reward_step), **{**settings, **kwargs})


def move(actor) -> None:
    """As learning might."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for weights in actor.parameters():
            weights += 0.1 * th.randn(weights.shape, generator=generator)


OBSERVATIONS = th.randn(50, 3, generator=th.Generator().manual_seed(0))


class TestDivergence:
    @pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG])
    def test_none_from_itself(self, algorithm):
        model = make_model(algorithm)
        divergence = ActorAnchor(model, 1.0).divergence(OBSERVATIONS)
        assert divergence.shape == (50,) and divergence.abs().max() < 1e-6

    def test_of_gaussians(self):
        model = make_model()
        anchor = ActorAnchor(model, 1.0)
        old_mean, old_log_std, _ = model.actor.get_action_dist_params(OBSERVATIONS)
        move(model.actor)
        mean, log_std, _ = model.actor.get_action_dist_params(OBSERVATIONS)
        ratio = (2 * (log_std - old_log_std)).exp()
        expected = 0.5 * (ratio - 1 - ratio.log() + (mean - old_mean) ** 2 / (2 * old_log_std).exp()).sum(1)
        assert expected.min() > 1e-3
        th.testing.assert_close(anchor.divergence(OBSERVATIONS), expected)

    def test_of_state_dependent_exploration(self):
        """The spread is that of the actions, by samples."""
        model = make_model(use_sde=True)
        anchor = ActorAnchor(model, 1.0)
        move(model.actor)
        mean, log_std, further = model.actor.get_action_dist_params(OBSERVATIONS[:1].repeat(20_000, 1))
        model.actor.reset_noise(20_000)
        actions = model.actor.action_dist.actions_from_params(mean, log_std, **further).detach()
        with th.no_grad():
            now, before = (self._normal(actor) for actor in (model.actor, anchor._before))
        np.testing.assert_allclose(th.atanh(actions).std(0), now[1], rtol=0.05)
        expected = th.log(before[1] / now[1]) + (now[1] ** 2 + (now[0] - before[0]) ** 2) / (2 * before[1] ** 2) - 0.5
        th.testing.assert_close(anchor.divergence(OBSERVATIONS[:1])[0], expected.sum())

    @staticmethod
    def _normal(actor):
        mean, log_std, further = actor.get_action_dist_params(OBSERVATIONS[:1])
        variance = further["latent_sde"] ** 2 @ log_std.exp() ** 2
        return mean[0], (variance + actor.action_dist.epsilon).sqrt()[0]

    @pytest.mark.parametrize("algorithm", [TD3, DDPG])
    def test_of_deterministic_actors(self, algorithm):
        """That of Gaussians with the standard deviation 0.1."""
        model = make_model(algorithm)
        anchor = ActorAnchor(model, 1.0)
        before = model.actor(OBSERVATIONS)
        move(model.actor)
        expected = ((model.actor(OBSERVATIONS) - before) ** 2).sum(1) / (2 * 0.1**2)
        th.testing.assert_close(anchor.divergence(OBSERVATIONS), expected)


class TestAnchor:
    @pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG])
    def test_a_strong_one_holds_and_a_weak_one_lets_learn(self, algorithm):
        moved = {}
        for strength in (100.0, 0.0):
            model = make_model(algorithm, learning_rate=3e-3)
            model.learn(30)
            before = model.actor._predict(OBSERVATIONS, deterministic=True).detach()
            ActorAnchor(model, strength)
            model.learn(400, reset_num_timesteps=False)
            after = model.actor._predict(OBSERVATIONS, deterministic=True).detach()
            moved[strength] = (after - before).abs().mean().item()
        assert moved[100.0] < 0.05 < 0.3 < moved[0.0]

    @pytest.mark.parametrize("algorithm", [SAC, TD3])
    def test_gradient_is_that_of_the_divergence_in_units_of_the_critic(self, algorithm):
        model = make_model(algorithm, learning_rate=0.0)
        model.learn(40)
        anchor = ActorAnchor(model, 0.3)
        move(model.actor)
        samples = []
        sample = model.replay_buffer.sample
        model.replay_buffer.sample = lambda *args, **kwargs: samples.append(sample(*args, **kwargs)) or samples[-1]
        model.actor.optimizer.zero_grad()
        model.actor.optimizer.step()
        parameters = [weights for weights in model.actor.parameters() if weights.grad is not None]
        found = [weights.grad.clone() for weights in parameters]
        [batch] = samples
        with th.no_grad():
            values = model.critic(batch.observations, model.actor._predict(batch.observations, deterministic=True))
            scale = 0.5 * (values[0].abs().mean() + values[1].abs().mean())
        expected = th.autograd.grad(0.3 * scale * anchor.divergence(batch.observations).mean(), parameters)
        assert max(gradient.abs().max() for gradient in expected) > 1e-3
        for ours, theirs in zip(found, expected, strict=True):
            th.testing.assert_close(ours, theirs)

    def test_released(self):
        model = make_model()
        model.learn(30)
        anchor = ActorAnchor(model, 100.0)
        anchor.release()
        model.actor.optimizer.zero_grad()
        model.actor.optimizer.step()
        assert all(weights.grad is None for weights in model.actor.parameters())

    def test_needs_an_actor(self):
        model = DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=10)
        with pytest.raises(ValueError, match="DQN has none"):
            ActorAnchor(model, 1.0)

    @pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
    def test_bad_strengths(self, strength):
        with pytest.raises(ValueError, match="strength must be finite and at least 0"):
            ActorAnchor(make_model(), strength)


class Strengths(BaseCallback):
    """The strength of the anchor while each rollout is collected, and so in the updates that follow the one before."""

    def __init__(self, warm_up: WarmUpCallback) -> None:
        super().__init__()
        self.warm_up = warm_up
        self.seen: dict[int, float | None] = {}

    def _on_step(self) -> bool:
        anchor = self.warm_up._anchor
        self.seen[self.num_timesteps] = None if anchor is None else anchor.strength
        return True


class TestWarmUp:
    def test_holds_from_the_beginning_of_learning_and_lets_go(self):
        model = make_model()
        warm_up = WarmUpCallback(critic_updates=3, kl_steps=40)
        strengths = Strengths(warm_up)
        model.learn(80, callback=[warm_up, strengths])
        # Learning begins after more than 20 steps; the strength of a step is set at the end of the one before.
        assert all(strengths.seen[step] is None for step in range(1, 22))
        assert all(strengths.seen[step] == ANCHOR_STRENGTH for step in range(22, 43))
        np.testing.assert_allclose(strengths.seen[52], 0.5 * ANCHOR_STRENGTH)
        assert 0 < strengths.seen[61] < 0.1 * ANCHOR_STRENGTH
        assert all(strengths.seen[step] is None for step in range(62, 81))
        assert not model.actor.optimizer._optimizer_step_pre_hooks

    def test_nothing_of_it_stays_when_learning_ends(self, tmp_path):
        model = make_model()
        model.learn(40, callback=WarmUpCallback(kl_steps=1000))
        assert not model.actor.optimizer._optimizer_step_pre_hooks
        model.save(tmp_path / "model")
        SAC.load(tmp_path / "model", device="cpu")

    def test_the_critic_learns_alone_first(self):
        """The hook must not ask a frozen actor for gradients."""
        model = make_model()
        model.learn(24, callback=WarmUpCallback(critic_updates=5, kl_steps=100))
        assert model._n_updates == 5 + 4

    @pytest.mark.parametrize("name", ["offline_updates", "critic_updates", "kl_steps"])
    def test_bad_numbers(self, name):
        with pytest.raises(ValueError, match=f"{name} must be .*-1"):
            WarmUpCallback(**{name: -1})

    def test_refuses_what_has_no_actor(self):
        model = DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=100, learning_starts=5)
        with pytest.raises(ValueError, match="DQN has none"):
            model.learn(40, callback=WarmUpCallback(kl_steps=20))
