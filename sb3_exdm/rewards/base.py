"""What an intrinsic reward is, and the part that all of them share."""

import json
import secrets
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from torch import nn

from sb3_exdm.common.running_moments import RunningMoments
from sb3_exdm.common.serialization import load_tree, save_tree, space_from_json, space_to_json
from sb3_exdm.common.spaces import SpaceEncoder

SelfReward = TypeVar("SelfReward", bound="FittedReward")

REWARD_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": lambda reward: np.exp(np.minimum(np.maximum(reward, -4.0), 4.0)),
    "identity": lambda reward: reward,
}
"""
What the agent is paid for a standardized reward. If the score is an affine function of -log p(s), as a variational
bound is, then ``exp`` pays a power of 1 / p(s): steep where little was visited, and never negative, so that an agent
is not paid for ending its episodes.
"""


SCORE_CHUNK = 4096
"""States that are scored at once, which bounds the memory whatever their number."""


@runtime_checkable
class IntrinsicReward(Protocol):
    """
    How novel a state is. :meth:`fit` learns and is the only method that changes anything; :meth:`score` and
    :meth:`reward` are pure. Arrays have one row per state and follow the space given at construction.
    """

    needs_actions: bool

    def fit(self, observations: Any, actions: Any = None, gradient_steps: int = 1) -> dict[str, float]:
        """Learn from visited states and return what to log."""

    def score(self, observations: Any, actions: Any = None) -> np.ndarray:
        """Raw novelty, ``(n,)``: the larger, the less visited."""

    def reward(self, observations: Any, actions: Any = None) -> np.ndarray:
        """Standardized novelty, ``(n,)``: about zero mean and unit variance over the states seen so far."""

    def save(self, path: str | Path) -> None:
        """Write everything learned to one file."""


class FittedReward(nn.Module):
    """
    Base class of the rewards of this package: encodes and whitens observations, draws minibatches, standardizes scores,
    saves and loads. A reward adds :meth:`_fit_batch` and :meth:`_score_batch`.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space
    :param action_space: needed if ``needs_actions``
    :param batch_size: size of the minibatches that :meth:`fit` draws
    :param seed: seed of everything random in the model
    :param device: PyTorch device, ``"auto"`` for CUDA where there is one
    """

    name: ClassVar[str]
    reward_transform: ClassVar[str] = "exp"
    """The entry of :data:`REWARD_TRANSFORMS` that suits the reward, used where none is asked for."""
    needs_actions: bool = False

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        batch_size: int = 256,
        seed: int | None = None,
        device: th.device | str = "auto",
        **constructor_kwargs: Any,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if self.needs_actions and action_space is None:
            raise ValueError(f"The reward {self.name!r} scores actions: pass action_space.")
        self.observation_space = observation_space
        self.action_space = action_space
        self.batch_size = batch_size
        self.seed = secrets.randbits(32) if seed is None else int(seed)
        self.device = get_device(device)
        self._constructor_kwargs = {"batch_size": batch_size, "seed": self.seed, **constructor_kwargs}
        self._encode_observations = SpaceEncoder(observation_space)
        self.observation_dim = self._encode_observations.dim
        self.whitening = RunningMoments(self.observation_dim, device=self.device)
        if action_space is not None and self.needs_actions:
            self._encode_actions = SpaceEncoder(action_space, "action")
            self.action_whitening = RunningMoments(self._encode_actions.dim, device=self.device)
        # A shorter memory than that of the whitening: the scale of the score moves as long as the model learns.
        self.score_moments = RunningMoments(1, min_weight=0.05, std_floor=1e-8, device=self.device)
        self.generator = th.Generator(device=self.device)
        self.generator.manual_seed(self.seed)

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` was ever called; before, scores mean nothing."""
        return self.whitening.n_batches.item() > 0

    # What a reward implements -----------------------------------------------------------------------------------------

    @abstractmethod
    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        """One update on a minibatch of whitened observations ``(batch, observation_dim)``; returns what to log."""

    @abstractmethod
    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        """Scores ``(batch,)`` of whitened observations ``(batch, observation_dim)``."""

    # What its users call ----------------------------------------------------------------------------------------------

    @th.enable_grad()  # environments are stepped without gradients by some algorithms, by ARS for one
    def fit(self, observations: Any, actions: Any = None, gradient_steps: int = 1) -> dict[str, float]:
        """
        Update the whitening with the given states, then take gradient steps, each on a minibatch of ``batch_size``
        drawn from them (all of them if there are fewer), and update the mean and scale of the score.

        :param observations: ``(n, *observation_space.shape)``
        :param actions: ``(n, *action_space.shape)``, only if ``needs_actions``
        :param gradient_steps: number of minibatches
        :return: what to log, averaged over the gradient steps
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
                rows = th.randint(len(states), (self.batch_size,), generator=self.generator, device=self.device)
                batch = states[rows]
                batch_actions = None if acts is None else acts[rows]
            for key, value in self._fit_batch(batch, batch_actions).items():
                totals[key] = totals.get(key, 0.0) + value / gradient_steps
        # Of single steps, which change little, every fourth is enough; and of many states a part.
        if gradient_steps != 1 or self.whitening.n_batches.item() % 4 == 1:
            probe = slice(None, None, max(len(states) // 128, 1))
            with th.no_grad():
                scores = self._score_batch(states[probe], None if acts is None else acts[probe])
            self.score_moments.update(scores.unsqueeze(1))
        return totals

    @th.no_grad()
    def score(self, observations: Any, actions: Any = None) -> np.ndarray:
        """
        Raw novelty of each state; changes nothing.

        :param observations: ``(n, *observation_space.shape)``
        :param actions: ``(n, *action_space.shape)``, only if ``needs_actions``
        :return: ``(n,)`` float32, larger where less was visited
        """
        states, acts = self._to_tensors(observations, actions)
        if len(states) == 0:
            return np.zeros(0, dtype=np.float32)
        states = self._whiten(states)
        if acts is not None:
            acts = self.action_whitening.standardize(acts)
        if len(states) <= SCORE_CHUNK:
            return self._score_batch(states, acts).cpu().numpy()
        chunks = range(0, len(states), SCORE_CHUNK)
        scores = [
            self._score_batch(states[i : i + SCORE_CHUNK], None if acts is None else acts[i : i + SCORE_CHUNK]) for i in chunks
        ]
        return th.cat(scores).cpu().numpy()

    def reward(self, observations: Any, actions: Any = None) -> np.ndarray:
        """
        Standardized novelty of each state, with the mean and standard deviation of the score over the states fitted so
        far; changes nothing.

        :param observations: ``(n, *observation_space.shape)``
        :param actions: ``(n, *action_space.shape)``, only if ``needs_actions``
        :return: ``(n,)`` float32
        """
        mean, std = self.score_moments.mean.item(), self.score_moments.std.item()
        return (self.score(observations, actions) - mean) / std

    def _to_tensors(self, observations: Any, actions: Any) -> tuple[th.Tensor, th.Tensor | None]:
        states = th.as_tensor(self._encode_observations(observations), device=self.device)
        if not self.needs_actions:
            return states, None
        if actions is None:
            raise ValueError(f"The reward {self.name!r} scores actions: pass them beside the observations.")
        acts = th.as_tensor(self._encode_actions(actions), device=self.device)
        if len(acts) != len(states):
            raise ValueError(f"Got {len(states)} observations but {len(acts)} actions.")
        return states, acts

    def _whiten(self, states: th.Tensor) -> th.Tensor:
        # A state twenty deviations away is as novel as can be; further out, a network only extrapolates.
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
        header = {
            "reward": self.name,
            "observation_space": space_to_json(self.observation_space),
            "action_space": None if self.action_space is None else space_to_json(self.action_space),
            "kwargs": self._constructor_kwargs,
        }
        state = {
            "header": json.dumps(header),
            "weights": dict(self.state_dict()),
            "generator": self.generator.get_state(),
            "extra": self._extra_state(),
        }
        save_tree(path, state, kind="intrinsic reward")

    @classmethod
    def load(cls: type[SelfReward], path: str | Path, device: th.device | str = "auto") -> SelfReward:
        """
        Read a model that :meth:`save` wrote. Executes no pickle.

        :param path: the file
        :param device: PyTorch device
        :return: the model, which goes on exactly where the saved one stopped
        """
        state = load_tree(path, kind="intrinsic reward")
        header = json.loads(state["header"])
        if header["reward"] != cls.name:
            raise ValueError(f"{path} holds the reward {header['reward']!r}, not {cls.name!r}; use sb3_exdm.load_reward.")
        action_space = None if header["action_space"] is None else space_from_json(header["action_space"])
        model = cls(space_from_json(header["observation_space"]), action_space, device=device, **header["kwargs"])
        model.load_state_dict(state["weights"])
        model.generator.set_state(state["generator"].cpu())
        model._load_extra_state(state["extra"])
        return model
