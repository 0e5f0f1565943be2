"""A Stable-Baselines3 policy that denoises actions."""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import get_actor_critic_arch
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_exdm.common.spaces import check_vector_spaces
from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.policies.diffusion_actor import DiffusionActor, load_pretrained
from sb3_exdm.policies.networks import Critic, SquashedGaussian


@dataclass(frozen=True)
class ActionSelection:
    """
    How a policy acts: it draws candidates and takes the one that the smaller of its critics values most. A single candidate
    needs no critic.

    :param actor: candidates from the actor that is fine-tuned
    :param behavior: candidates from the frozen pre-trained one
    :param gaussian: candidates from the Gaussian, its mode first
    """

    actor: int = 1
    behavior: int = 0
    gaussian: int = 0

    @property
    def n_candidates(self) -> int:
        """ActionCache for each state."""
        return self.actor + self.behavior + self.gaussian


@dataclass
class ExplorationState:
    """
    How a policy acts while transitions are collected.

    :param modes: for each environment ``"policy"`` (the acting rule), ``"behavior"`` (the frozen pre-trained policy) or
        ``"gaussian"``
    :param noise: standard deviation of the noise on actions of the acting rule, in units of [-1, 1]
    :param correlation: of the start noise from one action of the pre-trained policy to the next. What the policy cloned are
        many behaviors; with a start noise that changes slowly it follows one of them for a while, and gets further.
    :param start_noise: the last start noise of each environment, ``(n_envs, action_dim)``
    """

    modes: list[str]
    noise: float
    correlation: float
    start_noise: th.Tensor


class Learner(Protocol):
    """What trains a policy and has a state of its own that must be saved with it."""

    def training_state(self) -> dict[str, Any]:
        """Plain data and tensors."""


class DiffusionPolicy(BasePolicy):
    """
    A policy for SAC whose actor denoises actions: ``SAC("DiffusionPolicy", env)``.

    SAC's own update does not apply to it, as the density of a denoised action is unknown; it is trained by
    :class:`~sb3_exdm.finetuning.callback.DiffusionFinetuneCallback`. Observations are standardized by the policy itself.

    It holds the actor, the frozen pre-trained ``behavior``, critics, and a Gaussian that may propose actions as well.
    Everything learned is part of ``model.save``, states of optimizers and generators included.

    :param observation_space: Box of vectors
    :param action_space: Box with finite bounds
    :param lr_schedule: learning rate schedule
    :param use_sde: must be False
    :param pretrained: run folder of ``exdm pretrain``, or a file that :meth:`DiffusionActor.save` wrote
    :param net_arch: widths of the hidden layers of critics and Gaussian, as in Stable-Baselines3
    :param diffusion_arch: widths of the hidden layers of the diffusion model, where it is not pre-trained
    :param n_critics: number of critics
    :param n_sampling_steps: evaluations of the network per action; by default those of the pre-trained policy, or 5
    :raises ValueError: for Dict or image observations, discrete or unbounded actions, or ``use_sde=True``
    :raises ArtifactError: if ``pretrained`` cannot be used, or belongs to other spaces
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        pretrained: str | Path | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        diffusion_arch: list[int] | None = None,
        n_critics: int = 2,
        n_sampling_steps: int | None = None,
    ) -> None:
        check_vector_spaces(observation_space, action_space, "DiffusionPolicy")
        if n_critics < 1:
            raise ValueError(f"n_critics must be at least 1, got {n_critics}.")
        if use_sde:
            raise ValueError(
                "DiffusionPolicy explores by sampling; state-dependent exploration (use_sde=True) does not apply."
            )
        super().__init__(observation_space, action_space, squash_output=True)
        self.lr_schedule = lr_schedule
        self.learner: Learner | None = None
        self.learner_state: dict[str, Any] | None = None
        self.rollout: ExplorationState | None = None
        self.acting = ActionSelection()
        gaussian_arch, critic_arch = get_actor_critic_arch(net_arch if net_arch is not None else [256, 256])
        config: dict[str, Any] = {
            "actor": {
                "net_arch": diffusion_arch or [128, 128, 128],
                "n_sampling_steps": 5 if n_sampling_steps is None else n_sampling_steps,
            },
            "gaussian_arch": gaussian_arch,
            "has_pretrained_gaussian": False,
            "critic_arch": critic_arch,
            "n_critics": n_critics,
        }
        if pretrained is None:
            self._build(config)
            return
        actor, gaussian = load_pretrained(pretrained, "cpu")
        for name, given, known in (
            ("observations", observation_space, actor.observation_space),
            ("actions", action_space, actor.action_space),
        ):
            if given != known:
                raise ValueError(
                    f"The policy in {pretrained} was pre-trained with {name} {known}, the environment has {given}."
                )
        config["actor"] = dict(actor.config)
        if n_sampling_steps is not None:
            config["actor"]["n_sampling_steps"] = n_sampling_steps
        if gaussian is not None:
            config.update(gaussian_arch=gaussian.net_arch, has_pretrained_gaussian=True)
        self._build(config)
        self.actor.load_state_dict(actor.state_dict())
        self.behavior.load_state_dict(actor.model.state_dict())
        if gaussian is not None:
            self.gaussian.load_state_dict(gaussian.state_dict())

    def _build(self, config: dict[str, Any]) -> None:
        """Make all networks anew."""
        self.config = config
        settings = {"learning_rate": self.lr_schedule(1.0), **config["actor"]}
        # The seed of the algorithm has set the global generator.
        seeds = th.randint(2**31, (2,)).tolist()
        self.actor = DiffusionActor(self.observation_space, self.action_space, **settings, seed=seeds[0])
        config["actor"] = self.actor.config
        self.behavior = DiffusionActor(self.observation_space, self.action_space, **settings, seed=seeds[1]).model
        self.behavior.load_state_dict(self.actor.model.state_dict())
        self.gaussian = SquashedGaussian(self.actor.features.dim, self.actor.model.dim, config["gaussian_arch"])
        widths = self.actor.features.dim, self.actor.model.dim, config["critic_arch"], config["n_critics"]
        self.critic, self.critic_target = Critic(*widths), Critic(*widths)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        self.critic.optimizer = th.optim.Adam(self.critic.parameters(), lr=self.lr_schedule(1.0), fused=True)

    @property
    def n_sampling_steps(self) -> int:
        """Evaluations of the diffusion model per action."""
        return self.actor.config["n_sampling_steps"]

    @property
    def has_pretrained_gaussian(self) -> bool:
        """Whether the Gaussian is one that explored, rather than a fresh one."""
        return self.config["has_pretrained_gaussian"]

    def features(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: raw, ``(batch, *shape)``
        :return: what all networks see, ``(batch, features_dim)``
        """
        return self.actor.features(observations)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        assert isinstance(observation, th.Tensor)
        if not observation.isfinite().all():
            raise ValueError("The observation holds NaN or infinite values.")
        features = self.features(observation)
        if self.rollout is not None and not deterministic and len(features) == len(self.rollout.modes):
            return self._explore(features, self.rollout)
        return self.act(features, deterministic)

    @th.no_grad()
    def act(self, features: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        Act by the acting rule.

        :param features: ``(batch, features_dim)``
        :param deterministic: draw the candidates from fixed noise, so that they depend on the observation alone
        :return: actions in [-1, 1], ``(batch, action_dim)``
        """
        rule = self.acting
        candidates = []
        for model, n_actions in ((self.actor.model, rule.actor), (self.behavior, rule.behavior)):
            if n_actions:
                candidates.append(self.denoise(features, n_actions, model, deterministic))
        if rule.gaussian:
            candidates.append(self._propose(features, rule.gaussian, deterministic))
        actions = th.cat(candidates, dim=1) if len(candidates) > 1 else candidates[0]  # (batch, n_candidates, action_dim)
        if actions.shape[1] == 1:
            return actions[:, 0]
        best = self.critic.min_q(features, actions).argmax(dim=1)
        return actions[th.arange(len(actions), device=actions.device), best]

    def denoise(
        self,
        features: th.Tensor,
        n_actions: int,
        model: DiffusionModel | None = None,
        deterministic: bool = False,
        noise: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param n_actions: actions per state
        :param model: diffusion model to sample from, the frozen pre-trained one by default
        :param deterministic: start from fixed noise
        :param noise: start noise, ``(batch * n_actions, action_dim)``; drawn by default
        :return: actions in [-1, 1], ``(batch, n_actions, action_dim)``
        """
        model = self.behavior if model is None else model
        if deterministic:
            noise = _fixed_noise(n_actions, model.dim).to(features.device).repeat(len(features), 1)
        return self.actor.candidates(features, n_actions, noise, model)

    def _propose(self, features: th.Tensor, n_actions: int, deterministic: bool) -> th.Tensor:
        """The Gaussian's mode, then samples of it, ``(batch, n_actions, action_dim)``."""
        mean, log_std = self.gaussian(features)
        shape = (len(features), n_actions, mean.shape[1])
        if deterministic:
            noise = _fixed_noise(n_actions, mean.shape[1]).to(mean.device).expand(shape)
        else:
            noise = th.randn(shape, generator=self.actor.model.generator, device=mean.device)
            noise[:, 0] = 0.0
        return (mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise).tanh()

    @th.no_grad()
    def _explore(self, features: th.Tensor, rollout: ExplorationState) -> th.Tensor:
        """Each environment by its mode."""
        generator = self.actor.model.generator
        modes = np.array(rollout.modes)
        actions = th.empty(len(features), self.actor.model.dim, device=features.device)
        for mode in dict.fromkeys(rollout.modes):  # the order of a set would differ from process to process
            rows = th.as_tensor(np.flatnonzero(modes == mode), device=features.device)
            if mode == "policy":
                chosen = self.act(features[rows])
                noise = th.randn(chosen.shape, generator=generator, device=chosen.device)
                actions[rows] = (chosen + rollout.noise * noise).clamp(-1.0, 1.0)
            elif mode == "behavior":
                fresh = th.randn(len(rows), self.behavior.dim, generator=generator, device=features.device)
                start = rollout.correlation * rollout.start_noise[rows] + math.sqrt(1.0 - rollout.correlation**2) * fresh
                rollout.start_noise[rows] = start
                actions[rows] = self.denoise(features[rows], 1, noise=start)[:, 0]
            else:
                noise = th.randn(len(rows), self.actor.model.dim, generator=generator, device=features.device)
                actions[rows] = self.gaussian.action_log_prob(features[rows], noise)[0]
        return actions

    def q_values(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: raw, ``(batch, *shape)``
        :param actions: in [-1, 1], ``(batch, action_dim)``
        :return: of every critic, ``(n_critics, batch)``
        """
        return self.critic(self.features(observations), actions)

    def set_training_mode(self, mode: bool) -> None:
        """Nothing here behaves differently in training."""
        self.training = mode

    def get_extra_state(self) -> dict[str, Any]:
        """What tensors of the state dict do not say: how networks are built, how it acts, what trains it."""
        assert self.critic.optimizer is not None
        return {
            "config": self.config,
            "acting": asdict(self.acting),
            "actor": self.actor.model.training_state(),
            "behavior": self.behavior.training_state(),
            "critic_optimizer": self.critic.optimizer.state_dict(),
            "learner": self.learner_state if self.learner is None else self.learner.training_state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`get_extra_state`; PyTorch loads the tensors after this"""
        if state["config"] != self.config:
            device, before = self.device, dict(self.named_children())
            self._build(state["config"])
            # Algorithms hold references to their networks (model.actor, model.critic), so these stay the same objects.
            for name, module in before.items():
                module.__dict__ = getattr(self, name).__dict__
                setattr(self, name, module)
            self.to(device)
        self.acting = ActionSelection(**state["acting"])
        self.actor.model.load_training_state(state["actor"])
        self.behavior.load_training_state(state["behavior"])
        assert self.critic.optimizer is not None
        self.critic.optimizer.load_state_dict(state["critic_optimizer"])
        self.learner, self.learner_state = None, state["learner"]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
        }


class DiffusionTD3Policy(DiffusionPolicy):
    """
    A :class:`DiffusionPolicy` for TD3 and DDPG. Their target actor is the actor itself, whose weights are averaged anyway.

    The parameters are those of :class:`DiffusionPolicy`.
    """

    @property
    def actor_target(self) -> DiffusionActor:
        """The actor."""
        return self.actor


@lru_cache(maxsize=32)
def _fixed_noise(n_actions: int, dim: int) -> th.Tensor:
    """No noise first, then the same noises for ever, ``(n_actions, dim)``."""
    noise = th.randn(n_actions, dim, generator=th.Generator().manual_seed(0))
    noise[0] = 0.0
    return noise
