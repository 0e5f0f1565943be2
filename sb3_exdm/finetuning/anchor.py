"""Holding a pre-trained actor while the critic that leads it is young."""

from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch.distributions import Normal, kl_divergence

NOISE = 0.1
"""What a deterministic actor is taken to be the mean of: a Gaussian with this standard deviation, in units of [-1, 1]."""


class ActorAnchor:
    """
    From now on, the loss of the actor of an algorithm also holds its divergence from the actor that it is now:

        strength * mean |Q(s, a)| * KL(actor(s) || actor as it was(s)),  s from the replay buffer

    The value in front makes the strength independent of the scale of rewards, as in TD3+BC (Fujimoto & Gu 2021, section 5),
    which holds on to the actions of data; holding on to a policy that explored is kickstarting (Schmitt et al. 2018).

    It acts by a hook of the actor's optimizer, so the algorithm's own ``train`` stays as it is.

    :param model: SAC, TD3, DDPG or another off-policy algorithm with an actor and a critic
    :param strength: weight of the divergence, at least 0; may be changed at any time
    :raises ValueError: if the algorithm has no actor, or for a strength out of range
    """

    def __init__(self, model: OffPolicyAlgorithm, strength: float) -> None:
        policy: Any = model.policy
        if not hasattr(policy, "make_actor"):
            raise ValueError(f"Only an actor can be held, and {type(model).__name__} has none.")
        if not 0.0 <= strength < float("inf"):
            raise ValueError(f"strength must be finite and at least 0, got {strength}.")
        self.model = model
        self.strength = strength
        self._actor = policy.actor
        self._before = policy.make_actor()
        self._before.load_state_dict(self._actor.state_dict())
        self._before.requires_grad_(False)
        self._hook = self._actor.optimizer.register_step_pre_hook(self._add_gradient)

    def release(self) -> None:
        """Let the actor go where its critic leads."""
        self._hook.remove()

    def divergence(self, observations: Any) -> th.Tensor:
        """
        :param observations: as the actor takes them, ``n`` of them
        :return: KL divergence of the actor from what it was, in nats, shape ``(n,)``, at least 0
        """
        return kl_divergence(_distribution(self._actor, observations), _distribution(self._before, observations)).sum(1)

    def _add_gradient(self, *_: Any) -> None:
        model: Any = self.model
        observations = model.replay_buffer.sample(model.batch_size, env=model.get_vec_normalize_env()).observations
        with th.no_grad():
            values = model.critic(observations, self._actor._predict(observations, deterministic=True))
            scale = th.stack([value.abs().mean() for value in values]).mean()
        (self.strength * scale * self.divergence(observations).mean()).backward()


def _distribution(actor: Any, observations: Any) -> Normal:
    """Of actions, before they are squashed to [-1, 1] if the actor is stochastic."""
    if not hasattr(actor, "action_dist"):
        return Normal(actor(observations), NOISE)
    mean, log_std, further = actor.get_action_dist_params(observations)
    return actor.action_dist.proba_distribution(mean, log_std, **further).distribution
