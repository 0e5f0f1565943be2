"""Diffusion policy for Stable-Baselines3."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import get_actor_critic_arch
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_exdm.common.serialization import ArtifactError, load_optimizer
from sb3_exdm.common.spaces import check_vector_spaces
from sb3_exdm.common.validation import Between, Frequencies, NetArch, NFrequencies, Widths, check_choice, check_kwargs
from sb3_exdm.policies.diffusion_actor import NEEDS_CALLBACK, DiffusionActor, NSamplingSteps, load_pretrained
from sb3_exdm.policies.networks import Critic, SquashedGaussian

STARTS = ("last", "cloned")
"""Pre-trained Gaussian policies, in the order of :class:`~sb3_exdm.policies.diffusion_actor.PretrainedPolicies`."""
NCandidates = Annotated[int, Between(0, 4096)]


@dataclass(frozen=True)
class ActionSelection:
    """
    Number of candidate actions from each network. The candidate with the highest minimum over the critics is selected; a
    single one needs no critic.

    :param actor: candidates from the fine-tuned actor
    :param behavior: candidates from the pre-trained diffusion policy
    :param gaussian: candidates from the Gaussian, its mode first
    """

    actor: NCandidates = 1
    behavior: NCandidates = 0
    gaussian: NCandidates = 0

    @property
    def n_candidates(self) -> int:
        """Number of candidates per state."""
        return self.actor + self.behavior + self.gaussian


@dataclass
class ExplorationState:
    """
    State of the exploration while transitions are collected.

    :param actors: actor of each environment: ``"policy"`` (the action selection), ``"gaussian"`` (samples of the Gaussian),
        ``"behavior"`` (the pre-trained diffusion policy) or ``"behavior_gaussian"`` (the pre-trained Gaussian)
    :param noise: standard deviation of the noise on selected actions, in units of [-1, 1]
    :param correlation: correlation of the noise between consecutive actions of the pre-trained policies. They imitate many
        behaviors; with a noise that changes slowly they follow one of them for a while, and get further.
    :param start_noise: last start noise of each environment, ``(n_envs, action_dim)``
    """

    actors: list[str]
    noise: float
    correlation: float
    start_noise: th.Tensor


class DiffusionPolicy(BasePolicy):
    """
    Policy for SAC whose actor samples actions by denoising: ``SAC("DiffusionPolicy", env)``. It consists of the actor, the
    frozen pre-trained diffusion policy (``behavior``), critics, and a Gaussian.

    SAC's own update does not apply, because the density of a denoised action is unknown; pass a
    :class:`~sb3_exdm.finetuning.callback.DiffusionFinetuneCallback` to ``learn``. The policy standardizes observations itself.
    ``model.save`` includes everything learned, the states of optimizers and generators too.

    :param observation_space: Box of vectors
    :param action_space: Box with finite bounds
    :param lr_schedule: learning rate schedule
    :param use_sde: must be False
    :param pretrained: run folder of ``exdm pretrain``, or file that :meth:`DiffusionActor.save` wrote. Its networks replace
        those of ``diffusion_arch``, ``frequencies``, ``n_frequencies`` and, if it has a Gaussian, of ``net_arch["pi"]``.
    :param start: pre-trained Gaussian to start from, a name in :data:`STARTS`: ``"last"`` for the policy that explored,
        ``"cloned"`` for the one fitted to the explored transitions
    :param net_arch: widths of the hidden layers of Gaussian (``pi``) and critics (``qf``), as in Stable-Baselines3
    :param diffusion_arch: ``net_arch`` of :class:`DiffusionActor`
    :param n_critics: number of critics
    :param n_sampling_steps: network evaluations per action; by default those of the pre-trained policy, or 5
    :param grid: spacing of these steps; by default that of the pre-trained policy, or ``"quadratic"``
    :param frequencies: see :class:`DiffusionActor`
    :param n_frequencies: see :class:`DiffusionActor`
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
        start: str = "last",
        net_arch: Annotated[list[int] | dict[str, list[int]], Widths(1)] | None = None,
        diffusion_arch: NetArch | None = None,
        n_critics: Annotated[int, Between(1, 64)] = 2,
        n_sampling_steps: NSamplingSteps | None = None,
        grid: str | None = None,
        frequencies: Frequencies | None = None,
        n_frequencies: NFrequencies | None = None,
    ) -> None:
        check_vector_spaces(observation_space, action_space, "DiffusionPolicy")
        check_kwargs(DiffusionPolicy, {"net_arch": net_arch, "n_critics": n_critics})
        check_choice("start", start, STARTS)
        if use_sde:
            raise ValueError(
                "DiffusionPolicy explores by sampling: use_sde=True (state-dependent exploration) is not possible."
            )
        super().__init__(observation_space, action_space, squash_output=True)
        self.lr_schedule = lr_schedule
        self.action_selection = ActionSelection()
        self.exploration: ExplorationState | None = None
        self.finetuning_state: dict[str, Any] | None = None
        self._is_predicting = False
        sampling: dict[str, Any] = {"n_sampling_steps": n_sampling_steps, "grid": grid}
        networks: dict[str, Any] = {"net_arch": diffusion_arch, "frequencies": frequencies, "n_frequencies": n_frequencies}
        gaussian_arch, critic_arch = get_actor_critic_arch([256, 256] if net_arch is None else net_arch)
        source, *gaussians = (None, None, None) if pretrained is None else load_pretrained(pretrained, "cpu")
        gaussian: SquashedGaussian | None = gaussians[STARTS.index(start)]
        if source is not None:
            if (source.observation_space, source.action_space) != (observation_space, action_space):
                raise ValueError(
                    f"The policy in {pretrained} was pre-trained with observations {source.observation_space} and actions "
                    f"{source.action_space}, the environment has {observation_space} and {action_space}."
                )
            sampling = {**source.config, **{key: value for key, value in sampling.items() if value is not None}}
        if source is not None and gaussian is None and start == "cloned":
            raise ArtifactError(
                f"{pretrained} holds no Gaussian policy that was fitted to transitions: make one with "
                f"`exdm clone {pretrained} --out {pretrained}`."
            )
        if gaussian is not None:
            gaussian_arch = gaussian.net_arch
        self.has_pretrained_gaussian = gaussian is not None
        settings = {key: value for key, value in {**networks, **sampling}.items() if value is not None}
        settings["learning_rate"] = lr_schedule(1.0)
        # The seed of the algorithm has set the global generator.
        seeds = th.randint(2**31, (2,)).tolist()
        self.actor = DiffusionActor(observation_space, action_space, **settings, seed=seeds[0])
        self.behavior = DiffusionActor(observation_space, action_space, **settings, seed=seeds[1]).model
        self.behavior.load_state_dict(self.actor.model.state_dict())
        self.gaussian = SquashedGaussian(self.actor.features.dim, self.actor.model.dim, gaussian_arch)
        self.behavior_gaussian = SquashedGaussian(self.actor.features.dim, self.actor.model.dim, gaussian_arch)
        widths = self.actor.features.dim, self.actor.model.dim, critic_arch, n_critics
        self.critic, self.critic_target = Critic(*widths), Critic(*widths)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        self.critic.optimizer = th.optim.Adam(self.critic.parameters(), lr=lr_schedule(1.0), fused=True)
        if source is not None:
            self.actor.load_state_dict(source.state_dict())
            self.behavior.load_state_dict(source.model.state_dict())
        if gaussian is not None:
            self.gaussian.load_state_dict(gaussian.state_dict())
        self.behavior_gaussian.load_state_dict(self.gaussian.state_dict())
        self.behavior_gaussian.requires_grad_(False)
        resolved = self.actor.config
        self.network_kwargs: dict[str, Any] = {
            "net_arch": {"pi": list(gaussian_arch), "qf": list(critic_arch)},
            "diffusion_arch": resolved["net_arch"],
            "n_critics": n_critics,
            **{key: resolved[key] for key in ("n_sampling_steps", "grid", "frequencies", "n_frequencies")},
        }

    @property
    def n_sampling_steps(self) -> int:
        """Network evaluations per action."""
        return self.actor.config["n_sampling_steps"]

    def features(self, observations: th.Tensor) -> th.Tensor:
        """Compute the features ``(batch, features_dim)`` of raw observations, which all networks share."""
        return self.actor.features(observations)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(observation, deterministic)

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Predict actions, see :meth:`~stable_baselines3.common.policies.BasePolicy.predict`. During ``learn``, actions with
        ``deterministic=False`` are those that explore.
        """
        self._is_predicting = True
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._is_predicting = False

    def set_training_mode(self, mode: bool) -> None:
        """
        Set the mode, which no network depends on. Algorithms call this when they start to learn.

        :param mode: whether the policy is trained
        :raises RuntimeError: if the algorithm learns without :class:`~sb3_exdm.finetuning.callback.DiffusionFinetuneCallback`
        """
        if self.exploration is None and not self._is_predicting:
            raise RuntimeError(NEEDS_CALLBACK)
        self.training = mode

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        assert isinstance(observation, th.Tensor)
        if not observation.isfinite().all():
            raise ValueError("The observation holds NaN or infinite values.")
        features = self.features(observation)
        if self.exploration is None or deterministic:
            return self.act(features, deterministic)
        return self._explore(features, self.exploration)

    @th.no_grad()
    def act(self, features: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        Act by the action selection.

        :param features: features of the observations, ``(batch, features_dim)``
        :param deterministic: whether candidates start from fixed noise, so that they depend on the observation alone
        :return: actions in [-1, 1], ``(batch, action_dim)``
        """
        selection, n = self.action_selection, len(features)
        candidates = []
        for model, n_actions in ((self.actor.model, selection.actor), (self.behavior, selection.behavior)):
            if n_actions:
                noise = _fixed_noise(n_actions, model.dim).repeat(n, 1).to(features.device) if deterministic else None
                candidates.append(self.actor.sample_actions(features, n_actions, noise, model))
        if selection.gaussian:
            candidates.append(self._sample_gaussian(features, selection.gaussian, deterministic))
        actions = th.cat(candidates, dim=1) if len(candidates) > 1 else candidates[0]  # (batch, n_candidates, action_dim)
        if actions.shape[1] == 1:
            return actions[:, 0]
        best = self.critic.min_q(features, actions).argmax(dim=1)
        return actions[th.arange(len(actions), device=actions.device), best]

    def _sample_gaussian(self, features: th.Tensor, n_actions: int, deterministic: bool) -> th.Tensor:
        """Mode of the Gaussian, then samples, ``(batch, n_actions, action_dim)``."""
        mean, log_std = self.gaussian(features)
        shape = (len(features), n_actions, mean.shape[1])
        if deterministic:
            noise = _fixed_noise(n_actions, mean.shape[1]).to(mean.device).expand(shape)
        else:
            noise = th.randn(shape, generator=self.actor.model.generator, device=mean.device)
            noise[:, 0] = 0.0
        return (mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise).tanh()

    @th.no_grad()
    def _explore(self, features: th.Tensor, state: ExplorationState) -> th.Tensor:
        """Action of each environment by its actor."""
        if len(features) != len(state.actors):
            raise ValueError(
                f"During learn(), deterministic=False explores in its {len(state.actors)} environments, got a batch of "
                f"{len(features)}. Pass deterministic=True; if learn() was interrupted, set policy.exploration = None first."
            )
        generator = self.actor.model.generator
        actors = np.array(state.actors)
        actions = th.empty(len(features), self.actor.model.dim, device=features.device)
        for actor in dict.fromkeys(state.actors):  # not a set, whose order differs between processes
            envs = th.as_tensor(np.flatnonzero(actors == actor), device=features.device)
            if actor == "policy":
                selected = self.act(features[envs])
                noise = th.randn(selected.shape, generator=generator, device=selected.device)
                actions[envs] = (selected + state.noise * noise).clamp(-1.0, 1.0)
            elif actor.startswith("behavior"):
                fresh = th.randn(len(envs), self.behavior.dim, generator=generator, device=features.device)
                start = state.correlation * state.start_noise[envs] + math.sqrt(1.0 - state.correlation**2) * fresh
                state.start_noise[envs] = start
                if actor == "behavior":
                    actions[envs] = self.actor.sample_actions(features[envs], 1, start, self.behavior)[:, 0]
                else:
                    actions[envs] = self.behavior_gaussian.action_log_prob(features[envs], start)[0]
            else:
                noise = th.randn(len(envs), self.actor.model.dim, generator=generator, device=features.device)
                actions[envs] = self.gaussian.action_log_prob(features[envs], noise)[0]
        return actions

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is learned beside the tensors of the state dict, and the arguments that rebuild the networks."""
        assert self.critic.optimizer is not None
        return {
            "network_kwargs": self.network_kwargs,
            "has_pretrained_gaussian": self.has_pretrained_gaussian,
            "action_selection": asdict(self.action_selection),
            "actor": self.actor.model.training_state(),
            "behavior": self.behavior.training_state(),
            "critic_optimizer": self.critic.optimizer.state_dict(),
            "finetuning_state": self.finetuning_state,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned. PyTorch loads the tensors after this."""
        if different := {key: value for key, value in state["network_kwargs"].items() if self.network_kwargs[key] != value}:
            raise ValueError(
                f"The saved networks were built with {different}, these with "
                f"{ {key: self.network_kwargs[key] for key in different} }; pass the former in policy_kwargs."
            )
        check_kwargs(ActionSelection, state["action_selection"], "its action_selection")
        self.has_pretrained_gaussian = bool(state["has_pretrained_gaussian"])
        self.action_selection = ActionSelection(**state["action_selection"])
        self.actor.model.load_training_state(state["actor"])
        self.behavior.load_training_state(state["behavior"])
        assert self.critic.optimizer is not None
        load_optimizer(self.critic.optimizer, state["critic_optimizer"])
        self.finetuning_state = state["finetuning_state"]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            **self.network_kwargs,
        }


class DiffusionTD3Policy(DiffusionPolicy):
    """
    :class:`DiffusionPolicy` for TD3 and DDPG. The target actor is the actor itself, which acts with averaged weights.

    The parameters are those of :class:`DiffusionPolicy`.
    """

    @property
    def actor_target(self) -> DiffusionActor:
        """The actor."""
        return self.actor


def saved_network_kwargs(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """
    Read the arguments that rebuild the networks of a saved policy.

    :param state_dict: state dict of a :class:`DiffusionPolicy`
    :return: arguments of :class:`DiffusionPolicy`, plain data
    :raises ValueError: for arguments that :class:`DiffusionPolicy` refuses
    """
    kwargs = state_dict["_extra_state"]["network_kwargs"]
    check_kwargs(DiffusionPolicy, kwargs, "its header", ignore=("pretrained", "use_sde"))
    return kwargs


@lru_cache(maxsize=32)
def _fixed_noise(n_actions: int, dim: int) -> th.Tensor:
    """Zero noise first, then the same noise in every call, ``(n_actions, dim)``."""
    noise = th.randn(n_actions, dim, generator=th.Generator().manual_seed(0))
    noise[0] = 0.0
    return noise
