"""Protocol of intrinsic rewards, and the base class that implements what they share."""

import functools
import inspect
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_exdm.common.resources import resolve_device
from sb3_exdm.common.running_moments import LARGEST, RunningMoments, Whitening
from sb3_exdm.common.serialization import (
    ArtifactError,
    check_weights,
    load_tree,
    parse_json,
    read_from,
    save_tree,
    space_from_json,
    space_to_json,
)
from sb3_exdm.common.spaces import SpaceEncoder
from sb3_exdm.common.validation import BatchSize, Seed, check_kwargs, shown

SelfReward = TypeVar("SelfReward", bound="FittedReward")

REWARD_TRANSFORMS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "exp": lambda reward: reward.clamp(-4.0, 4.0).exp(),
    "sqrt_exp": lambda reward: (0.5 * reward).clamp(-4.0, 4.0).exp(),
    "identity": lambda reward: reward,
}
"""
Transforms of the standardized reward, by name; functions of a tensor. ``"exp"`` and its square root are never negative, so
that an agent gains nothing by ending an episode. For a score that is affine in -log p(s), as a variational bound is, they are
powers of 1 / p(s).
"""

SCORE_CHUNK = 4096
"""Largest number of states that are scored at once, to bound the memory."""
FILE_KIND = "intrinsic reward"


@runtime_checkable
class IntrinsicReward(Protocol):
    """
    Novelty of states, learned from visited ones. Only :meth:`fit` changes anything; :meth:`score` and :meth:`reward` are
    pure. The first axis of all arrays is the batch; the others follow the spaces.
    """

    observation_space: spaces.Space
    action_space: spaces.Space | None
    """May be None unless ``needs_actions``."""
    needs_actions: bool
    """Score actions and the states in which they are taken, instead of the states that were reached."""
    reward_transform: str
    """Name of the default transform in :data:`REWARD_TRANSFORMS`."""

    @property
    def fitted(self) -> bool:
        """True after the first call of :meth:`fit`."""

    def fit(self, observations: Any, actions: Any = None, gradient_steps: int = 1) -> dict[str, float]:
        """Learn from visited states; return metrics to log."""

    def score(self, observations: Any, actions: Any = None) -> np.ndarray:
        """Raw novelty ``(n,)``, larger where less was visited."""

    def reward(self, observations: Any, actions: Any = None) -> np.ndarray:
        """Standardized novelty ``(n,)``: about zero mean and unit variance over the visited states."""

    def save(self, path: str | Path) -> None:
        """Write everything learned to one file."""


def transformed_reward(
    model: IntrinsicReward, observations: Any, actions: Any = None, reward_transform: str | None = None
) -> np.ndarray:
    """
    Compute the intrinsic reward that an agent gets, before it is weighted. Until the first fit every state gets the reward of
    average novelty.

    :param model: model of the intrinsic reward
    :param observations: ``(n, *observation_space.shape)``
    :param actions: ``(n, *action_space.shape)``, only if ``model.needs_actions``
    :param reward_transform: a name in :data:`REWARD_TRANSFORMS`; None for the default of the model
    :return: ``(n,)``
    """
    return transformed_reward_tensor(model, observations, actions, reward_transform).cpu().numpy()


def transformed_reward_tensor(
    model: IntrinsicReward, observations: Any, actions: Any = None, reward_transform: str | None = None
) -> th.Tensor:
    """
    Compute :func:`transformed_reward` without leaving the device of the model. A :class:`FittedReward` takes tensors too.

    :return: ``(n,)`` float32
    """
    if isinstance(model, FittedReward):
        standardized = model.reward_tensor(observations, actions)
    else:
        standardized = th.as_tensor(model.reward(observations, actions), dtype=th.float32)
    if not model.fitted:
        standardized = th.zeros_like(standardized)
    return REWARD_TRANSFORMS[reward_transform or model.reward_transform](standardized)


def scores_next_state(model: IntrinsicReward) -> bool:
    """
    Tell which state of a transition a reward is given: the one that was reached, or the one that was left. The latter holds
    for rewards that need actions, and for a :class:`FittedReward` with ``scores_next = False``.

    :param model: model of the intrinsic reward
    """
    return not model.needs_actions and (not isinstance(model, FittedReward) or model.scores_next)


class FittedReward(nn.Module, ABC):
    """
    Base class of intrinsic rewards: encodes and whitens observations, draws minibatches, standardizes scores, saves and
    loads. A subclass has a ``name`` and implements :meth:`_fit_batch` and :meth:`_score_batch`; with
    :func:`~sb3_exdm.rewards.registry.register_reward` it is available by its name:

    >>> from gymnasium import spaces
    >>> from sb3_exdm import REWARDS, FittedReward, make_reward, register_reward
    >>> @register_reward("distance")
    ... class DistanceReward(FittedReward):
    ...     '''Distance from the mean of the visited states, in standard deviations.'''
    ...     name = "distance"
    ...     def _fit_batch(self, observations, actions):
    ...         return {}
    ...     def _score_batch(self, observations, actions):
    ...         return observations.norm(dim=1)
    >>> reward = make_reward("distance", spaces.Box(-1, 1, (1,)))
    >>> reward.fit([[-1.0], [1.0]])
    {}
    >>> reward.score([[0.0], [1.0]]).tolist()
    [0.0, 1.0]
    >>> REWARDS.unregister("distance")

    A constructor of its own takes the spaces, further arguments that are plain data, and ``**kwargs`` for those below. The
    arguments are recorded and saved. Tensors that are learned belong into parameters or buffers, everything else that is
    learned into :meth:`_extra_state`.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: needed if ``needs_actions``
    :param batch_size: size of the minibatches that :meth:`fit` draws
    :param seed: seed of everything random in the model
    :param device: PyTorch device, ``"auto"`` for CUDA where available
    """

    name: str
    """Name in the registry and in saved files."""
    reward_transform: str = "exp"
    needs_actions: bool = False
    scores_next: bool = True
    """Score the state that a transition reached, not the one that it left; see :func:`scores_next_state`."""
    _constructor_kwargs: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the constructor record its arguments, for :meth:`save`."""
        super().__init_subclass__(**kwargs)
        constructor: Any = cls.__init__
        signature = inspect.signature(constructor)

        @functools.wraps(constructor)
        def recording_constructor(self: FittedReward, *args: Any, **kwargs: Any) -> None:
            # The outermost constructor is called first, and its arguments are the ones to save.
            if "_constructor_kwargs" not in self.__dict__:
                bound = signature.bind(self, *args, **kwargs)
                check_kwargs(type(self), _settings(bound))
                bound.apply_defaults()
                self._constructor_kwargs = _settings(bound)
            constructor(self, *args, **kwargs)

        cls.__init__ = recording_constructor  # type: ignore[method-assign]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        batch_size: BatchSize = 256,
        seed: Seed | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__()
        if self.needs_actions and action_space is None:
            raise ValueError(f"The reward {self.name!r} depends on actions: pass action_space.")
        self.observation_space = observation_space
        self.action_space = action_space
        self.batch_size = batch_size
        self.seed = secrets.randbits(32) if seed is None else int(seed)
        self.device = resolve_device(device)
        self._encode_observations = SpaceEncoder(observation_space)
        self.observation_dim = self._encode_observations.dim
        self.whitening = Whitening(self.observation_dim, device=self.device)
        if action_space is not None and self.needs_actions:
            self._encode_actions = SpaceEncoder(action_space, "action")
            self.action_whitening = Whitening(self._encode_actions.dim, device=self.device)
        # A shorter memory than that of the whitening: the scale of the score moves as long as the model learns.
        self.score_moments = RunningMoments(1, min_weight=0.05, std_floor=1e-8, device=self.device)
        self.generator = th.Generator(device=self.device)
        self.generator.manual_seed(self.seed)

    @property
    def fitted(self) -> bool:
        """True after the first call of :meth:`fit`; scores mean nothing before."""
        return self.whitening.n_batches.item() > 0

    # Implemented by subclasses ----------------------------------------------------------------------------------------

    @abstractmethod
    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        """
        Update on a minibatch and return metrics to log.

        :param observations: encoded and whitened observations, ``(batch, observation_dim)``
        :param actions: encoded and whitened actions, ``(batch, action_dim)``; None unless ``needs_actions``
        """

    @abstractmethod
    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        """Compute scores ``(batch,)``, larger where less was visited; the parameters are those of :meth:`_fit_batch`."""

    def _score_fitted(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        """
        Compute scores ``(batch,)`` of states that were fitted last, from which their mean and scale are estimated. A subclass
        that remembers states leaves out what it remembers of these.
        """
        return self._score_batch(observations, actions)

    # Called by users --------------------------------------------------------------------------------------------------

    @th.enable_grad()  # some algorithms, ARS for one, step environments without gradients
    def fit(self, observations: Any, actions: Any = None, gradient_steps: int = 1) -> dict[str, float]:
        """
        Update the whitening with the given states, then take gradient steps, each on a minibatch of ``batch_size``
        drawn from them (all of them if there are fewer), and update the mean and scale of the score.

        :param observations: ``(n, *observation_space.shape)``
        :param actions: ``(n, *action_space.shape)``, only if ``needs_actions``
        :param gradient_steps: number of minibatches
        :return: metrics to log, averaged over the gradient steps
        """
        if gradient_steps < 0:
            raise ValueError(f"gradient_steps must not be negative, got {gradient_steps}.")
        states, acts = self._to_tensors(observations, actions)
        if len(states) == 0:
            raise ValueError("fit needs at least one observation, got none.")
        self.whitening.update(states)
        states = self._whiten(states)
        if acts is not None:
            self.action_whitening.update(acts)
            acts = self.action_whitening.standardize(acts)
        totals: dict[str, float] = {}
        for _ in range(gradient_steps):
            batch, batch_actions = states, acts
            if len(states) > self.batch_size:
                drawn = th.randint(len(states), (self.batch_size,), generator=self.generator, device=self.device)
                batch = states[drawn]
                batch_actions = None if acts is None else acts[drawn]
            for key, value in self._fit_batch(batch, batch_actions).items():
                totals[key] = totals.get(key, 0.0) + value / gradient_steps
        # A single step changes the score little: measure it at every fourth only, and on a part of many states.
        if gradient_steps != 1 or self.whitening.n_batches.item() % 4 == 1:
            probe = slice(None, None, max(len(states) // 128, 1))
            with th.no_grad():
                scores = self._score_fitted(states[probe], None if acts is None else acts[probe])
            self._update_score_moments(scores)
        return totals

    def _update_score_moments(self, scores: th.Tensor) -> None:
        if not scores.abs().max().item() <= LARGEST:
            raise ValueError(
                f"The reward {self.name!r} cannot be standardized: the scores of {len(scores)} fitted states are from "
                f"{scores.min().item():.3g} to {scores.max().item():.3g}. Use a smaller learning rate, or rescale "
                "the observations."
            )
        self.score_moments.update(scores.unsqueeze(1))

    def score(self, observations: Any, actions: Any = None) -> np.ndarray:
        """
        Compute the raw novelty of states; changes nothing. The parameters are those of :meth:`fit`.

        :return: ``(n,)`` float32, larger where less was visited
        """
        return self.score_tensor(observations, actions).cpu().numpy()

    def reward(self, observations: Any, actions: Any = None) -> np.ndarray:
        """
        Compute the standardized novelty of states; changes nothing. The parameters are those of :meth:`fit`.

        :return: ``(score - mean) / std`` with the running moments of the score over the fitted states, ``(n,)`` float32
        """
        return self.reward_tensor(observations, actions).cpu().numpy()

    @th.no_grad()
    def score_tensor(self, observations: Any, actions: Any = None) -> th.Tensor:
        """
        Compute :meth:`score` without leaving the device.

        :param observations: ``(n, *observation_space.shape)``; a tensor is taken as it is where observations are vectors
        :param actions: ``(n, *action_space.shape)``, only if ``needs_actions``
        :return: ``(n,)`` float32
        """
        states, acts = self._to_tensors(observations, actions)
        states = self._whiten(states)
        if acts is not None:
            acts = self.action_whitening.standardize(acts)
        if 0 < len(states) <= SCORE_CHUNK:
            return self._score_batch(states, acts)
        chunks = range(0, len(states), SCORE_CHUNK)
        scores = [
            self._score_batch(states[i : i + SCORE_CHUNK], None if acts is None else acts[i : i + SCORE_CHUNK]) for i in chunks
        ]
        return th.cat([th.zeros(0, device=self.device), *scores])

    def reward_tensor(self, observations: Any, actions: Any = None) -> th.Tensor:
        """
        Compute :meth:`reward` without leaving the device. The parameters are those of :meth:`score_tensor`.

        :return: ``(n,)`` float32
        """
        return self.score_moments.standardize(self.score_tensor(observations, actions))

    def _to_tensors(self, observations: Any, actions: Any) -> tuple[th.Tensor, th.Tensor | None]:
        if isinstance(observations, th.Tensor) and self._encode_observations.is_vector:
            states = observations.reshape(len(observations), self.observation_dim)
        else:
            array = observations.cpu().numpy() if isinstance(observations, th.Tensor) else observations
            states = th.as_tensor(self._encode_observations(array), device=self.device)
        if not self.needs_actions:
            return states, None
        if actions is None:
            raise ValueError(f"The reward {self.name!r} depends on actions: pass them beside the observations.")
        acts = th.as_tensor(self._encode_actions(actions), device=self.device)
        if len(acts) != len(states):
            raise ValueError(f"Got {len(states)} observations but {len(acts)} actions.")
        return states, acts

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        # Twenty deviations from the mean is as novel as it gets; beyond, a network only extrapolates.
        return self.whitening.standardize(states).clamp_(-20.0, 20.0)

    # Saving -----------------------------------------------------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        """Learned state outside of ``state_dict()``: a tree of tensors, numbers, strings, lists and dicts."""
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`_extra_state` returned."""

    def save(self, path: str | Path) -> None:
        """
        Write everything learned, optimizer and generator state included, to one safetensors file.

        :param path: the file
        """
        save_tree(path, self.to_tree(), kind=FILE_KIND)

    @classmethod
    def load(cls: type[SelfReward], path: str | Path, device: th.device | str = "auto") -> SelfReward:
        """
        Read a model that :meth:`save` wrote. Executes no pickle.

        :param path: the file
        :param device: PyTorch device
        :return: the model, which continues exactly where the saved one stopped
        """
        return cls.from_tree(load_tree(path, kind=FILE_KIND), device, path)

    def to_tree(self) -> dict[str, Any]:
        """Return the content of the file that :meth:`save` writes."""
        header = {
            "reward": self.name,
            "observation_space": space_to_json(self.observation_space),
            "action_space": None if self.action_space is None else space_to_json(self.action_space),
            "kwargs": {**self._constructor_kwargs, "batch_size": self.batch_size, "seed": self.seed},
        }
        return {
            "header": json.dumps(header),
            "weights": dict(self.state_dict()),
            "generator": self.generator.get_state(),
            "extra": self._extra_state(),
        }

    @classmethod
    def from_tree(
        cls: type[SelfReward], tree: dict[str, Any], device: th.device | str = "auto", path: str | Path = "The file"
    ) -> SelfReward:
        """
        Build a model from what :meth:`to_tree` returned.

        :param tree: content of a file
        :param device: PyTorch device
        :param path: the file, for error messages
        :raises ArtifactError: if the content cannot be used
        """
        device = resolve_device(device)
        with read_from(path):
            header = parse_json(tree["header"])
            if header["reward"] != cls.name:
                raise ArtifactError(
                    f"{path} holds the reward {shown(header['reward'])}, not {cls.name!r}; use sb3_exdm.load_reward."
                )
            kwargs = header["kwargs"]
            try:
                check_kwargs(cls, kwargs, "its header")
            except ValueError as error:
                raise ArtifactError(f"{path} was written by another version of {cls.__qualname__}: {error}") from None
            check_weights(tree["weights"], kwargs.get("net_arch"), path)
            action_space = None if header["action_space"] is None else space_from_json(header["action_space"])
            model = cls(space_from_json(header["observation_space"]), action_space, device=device, **kwargs)
            try:
                model.load_state_dict(tree["weights"])
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ArtifactError(f"{path} was written by another version of {cls.__qualname__}: {reason}") from None
            saved = tree["generator"].cpu()
            if len(saved) == len(model.generator.get_state()):  # not if it was saved on another kind of device
                model.generator.set_state(saved)
            model._load_extra_state(tree["extra"])
        return model


def _settings(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments of a constructor but for spaces and device."""
    parameters = bound.signature.parameters
    left_out = {"self", "observation_space", "action_space", "device"}
    left_out |= {
        name for name, parameter in parameters.items() if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    return {name: value for name, value in {**bound.arguments, **bound.kwargs}.items() if name not in left_out}
