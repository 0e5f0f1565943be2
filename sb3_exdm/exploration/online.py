"""Common part of the two reward wrappers: remember states, fit the intrinsic reward to them, compute rewards."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array

from sb3_exdm.common.resources import check_memory, resolve_device
from sb3_exdm.common.serialization import load_tree, read_from, save_tree
from sb3_exdm.common.validation import Between, check_integers, check_kwargs, check_rewards, check_value
from sb3_exdm.exploration.settings import EXTRINSIC_ADVICE, FitSchedule, RewardSettings
from sb3_exdm.rewards.base import FittedReward, IntrinsicReward, transformed_reward
from sb3_exdm.rewards.registry import reward_from_tree

SelfWrapper = TypeVar("SelfWrapper", bound="OnlineRewardMixin")

MAX_BYTES = 2**29
"""Largest size of the state memory in bytes, whatever ``buffer_size``: 19,000 images of 84 x 84 x 4."""
FILE_KIND = "reward wrapper"


class OnlineReward:
    """
    Fit an intrinsic reward to the states that environments reach, and compute the rewards of the agent.

    Every ``train_freq`` transitions it takes ``gradient_steps`` steps on states drawn uniformly from the last
    ``buffer_size``, so that the model does not forget regions visited long ago.

    The parameters are those of :class:`~sb3_exdm.exploration.wrapper.ScoreRewardWrapper`.
    """

    def __init__(
        self,
        reward: str | IntrinsicReward,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        buffer_size: int,
        reward_kwargs: dict[str, Any] | None,
        device: th.device | str,
        seed: int | None,
        **settings: Any,
    ) -> None:
        check_integers(buffer_size=(buffer_size, 1))
        self.settings = RewardSettings(**settings)
        self.schedule = FitSchedule(self.settings)
        self.model = self.settings.make_reward(
            reward, observation_space, action_space, reward_kwargs, seed=seed, device=device
        )
        self.fit_metrics: dict[str, float] = {}
        self.frozen = False
        self._n_steps = 0
        self._rng = np.random.default_rng(seed)
        parts = {"observations": observation_space, **({"actions": action_space} if self.model.needs_actions else {})}
        one = create_empty_array(spaces.Dict(parts), n=1, fn=np.zeros)
        self.buffer_size = max(min(buffer_size, MAX_BYTES // _n_bytes(one)), 1)
        check_memory(self.buffer_size * _n_bytes(one), "The state memory of the reward wrapper", "lower buffer_size")
        self._memory = create_empty_array(spaces.Dict(parts), n=self.buffer_size, fn=np.zeros)

    def reward_step(self, observations: Any, actions: Any, extrinsic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Compute the rewards of one step of ``n`` environments; then, unless ``frozen``, remember the states and fit the
        model when it is due.

        :param observations: reached states, ``(n, *observation_space.shape)``; for a model that needs actions, the states
            in which they were taken
        :param actions: ``(n, *action_space.shape)``, only if the model needs actions
        :param extrinsic: task rewards, ``(n,)``
        :return: rewards of the agent, and transformed intrinsic rewards, both ``(n,)``
        :raises ValueError: for NaN, infinity or a wrong shape in a state or a reward, before anything is learned; a task
            reward of weight zero may be anything
        """
        n_envs = len(extrinsic)
        self._n_steps += 1
        try:
            intrinsic = transformed_reward(self.model, observations, actions, self.settings.reward_transform)
        except ValueError as error:
            raise ValueError(f"No reward for step {self._n_steps} of the environment: {error}") from error
        when = f"at step {self._n_steps}"
        if intrinsic.shape != (n_envs,):
            raise ValueError(
                f"The intrinsic reward of {n_envs} states must be as many finite numbers, got {intrinsic} {when} from "
                f"{type(self.model).__name__}."
            )
        check_rewards(intrinsic, "intrinsic reward", when, f"{type(self.model).__name__} must return finite numbers.")
        rewards = self.settings.intrinsic_coef * intrinsic
        if self.settings.extrinsic_coef:
            check_rewards(extrinsic, "extrinsic reward", when, EXTRINSIC_ADVICE)
            rewards = rewards + self.settings.extrinsic_coef * extrinsic
        check_rewards(rewards, "weighted reward", when, "Use a smaller intrinsic_coef or extrinsic_coef.")
        if not self.frozen:
            self._learn(observations, actions, n_envs)
        return rewards, intrinsic

    def _learn(self, observations: Any, actions: Any, n_envs: int) -> None:
        start = self.schedule.n_transitions % self.buffer_size
        # A slice is faster than indices, where the states do not wrap around.
        is_inside = start + n_envs <= self.buffer_size
        indices = slice(start, start + n_envs) if is_inside else (start + np.arange(n_envs)) % self.buffer_size
        _write(self._memory, indices, {"observations": observations, "actions": actions})
        gradient_steps = self.schedule.advance(n_envs)
        if gradient_steps == 0:
            return
        drawn = self._rng.integers(self._n_states, size=gradient_steps * self.settings.batch_size)
        states = _map(lambda array: array[drawn], self._memory)
        self.fit_metrics = self.model.fit(states["observations"], states.get("actions"), gradient_steps=gradient_steps)

    @property
    def _n_states(self) -> int:
        return min(self.schedule.n_transitions, self.buffer_size)

    def to_tree(self) -> dict[str, Any]:
        """Return the model, the memory and the counters, for :func:`~sb3_exdm.common.serialization.save_tree`."""
        if not isinstance(self.model, FittedReward):
            raise TypeError(f"Only a FittedReward can be saved with its wrapper, this one has {self.model!r}.")
        return {
            "settings": {**asdict(self.settings), "buffer_size": self.buffer_size},
            "reward": self.model.to_tree(),
            "memory": _map(lambda array: th.from_numpy(array[: self._n_states]), self._memory),
            "counters": [self.schedule.n_transitions, self.schedule.n_fits, self._n_steps],
            "rng": self._rng.bit_generator.state,
            "fit_metrics": self.fit_metrics,
            "frozen": self.frozen,
        }

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Restore the memory and the counters from the tree of an object with the same model and settings."""
        check_value("counters", tree["counters"], list[Annotated[int, Between(0)]])
        check_value("frozen", tree["frozen"], bool)
        check_value("fit_metrics", tree["fit_metrics"], dict[str, Any])
        self.schedule.n_transitions, self.schedule.n_fits, self._n_steps = tree["counters"]
        _write(self._memory, slice(self._n_states), _map(th.Tensor.numpy, tree["memory"]))
        self._rng.bit_generator.state = tree["rng"]
        self.fit_metrics, self.frozen = tree["fit_metrics"], tree["frozen"]


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    return {key: _map(function, part) for key, part in tree.items()} if isinstance(tree, dict) else function(tree)


def _write(tree: Any, indices: Any, batch: Any) -> None:
    if isinstance(tree, dict):
        for key, part in tree.items():
            _write(part, indices, batch[key])
    else:
        tree[indices] = batch


def _n_bytes(tree: Any) -> int:
    return sum(map(_n_bytes, tree.values())) if isinstance(tree, dict) else tree.nbytes


class OnlineRewardMixin:
    """Attributes and methods that both reward wrappers share."""

    _online: OnlineReward

    @property
    def reward_model(self) -> IntrinsicReward:
        """Model of the intrinsic reward."""
        return self._online.model

    @property
    def reward_settings(self) -> RewardSettings:
        """Weights of the rewards and schedule of the fits; the weights can be changed while training."""
        return self._online.settings

    @property
    def fit_metrics(self) -> dict[str, float]:
        """Metrics of the last fit of the model; empty before."""
        return self._online.fit_metrics

    @property
    def frozen(self) -> bool:
        """Keep the model as it is, e.g. for evaluation: rewards are computed, but states neither remembered nor fitted."""
        return self._online.frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._online.frozen = frozen

    def save(self, path: str | Path) -> None:
        """
        Write the model, the state memory and the counters to one safetensors file.

        :param path: the file
        """
        save_tree(path, self._online.to_tree(), kind=FILE_KIND)

    @classmethod
    def load(cls: type[SelfWrapper], path: str | Path, env: Any, device: th.device | str = "auto") -> SelfWrapper:
        """
        Wrap an environment and continue exactly where a saved wrapper stopped, from the next ``reset`` on. Executes no pickle.

        :param path: file that :meth:`save` of either reward wrapper wrote
        :param env: environment, or vectorized environment, to wrap
        :param device: PyTorch device
        :raises ArtifactError: if the file cannot be used
        :raises ValueError: for an environment with other spaces
        """
        device = resolve_device(device)
        tree = load_tree(path, kind=FILE_KIND)
        with read_from(path):
            reward, settings = reward_from_tree(tree["reward"], path, device), tree["settings"]
            check_kwargs(OnlineReward, settings, "its header")
            check_kwargs(RewardSettings, {key: value for key, value in settings.items() if key != "buffer_size"}, "its header")
        wrapper: Any = cls(env, reward, **settings)  # type: ignore[call-arg]
        with read_from(path):
            wrapper._online.load_tree(tree)
        return wrapper


def refuse_her() -> NoReturn:
    """Raise the error for ``HerReplayBuffer``, which would drop the intrinsic reward."""
    raise NotImplementedError(
        "HerReplayBuffer recomputes the rewards of relabeled transitions with compute_reward of the environment, which would "
        "drop the intrinsic reward. Use another replay buffer with the reward wrapper, or HerReplayBuffer without the wrapper."
    )
