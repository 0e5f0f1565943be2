"""dm_control environments with flat observations, and the tasks of URLB made of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from shimmy.dm_control_compatibility import DmControlCompatibilityV0

from . import hopper, jaco, quadruped, walker
from .relabel import DOMAINS, RelabelingTask
from .rendering import needs_opengl
from .spaces import FlatObservations, ScaledActions

MAKERS = {"walker": walker.make, "quadruped": quadruped.make, "hopper": hopper.make, "jaco": jaco.make}
"""What makes dm_control's environment of a task, for each body. It has no time limit: Gymnasium has its own."""


class ControlWrapper(gym.Wrapper[np.ndarray, np.ndarray, Any, np.ndarray]):
    """
    Any dm_control environment behind shimmy's bridge, for algorithms that want vectors: observations are one float32 vector,
    in the order in which dm_control names their parts, and actions are scaled to [-1, 1].

    ``ControlWrapper(gym.make("dm_control/cheetah-run-v0"))``

    :param env: shimmy's environment
    :raises ValueError: if it is none, or its observations are no numbers, or its actions have no bounds
    """

    def __init__(self, env: gym.Env[Any, np.ndarray]) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, DmControlCompatibilityV0):
            raise ValueError(f'ControlWrapper is for environments of shimmy such as "dm_control/cheetah-run-v0", got {env}.')
        bridge = env.unwrapped
        if not isinstance(bridge.action_space, spaces.Box):
            raise ValueError(f"ControlWrapper needs continuous actions, got {bridge.action_space}.")
        self.flat = FlatObservations(bridge.observation_spec())
        self.scaled = ScaledActions(bridge.action_space.low, bridge.action_space.high)
        self.observation_space = self.flat.space
        self.action_space = self.scaled.space
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / bridge.dt)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Begin an episode.

        :param seed: seeds the initial states of this episode and those that follow
        :param options: not used
        :return: observation, float32 ``(dim,)``, and an info
        """
        parts: Any
        parts, info = self.env.reset(seed=seed, options=options)
        return self.flat(parts), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: in [-1, 1], ``(n_actions,)``
        :return: observation, reward, whether the episode terminated, whether it was truncated at its time limit, and an info
        """
        parts: Any
        parts, reward, terminated, truncated, info = self.env.step(self.scaled(action))
        return self.flat(parts), float(reward), terminated, truncated, info

    def render(self) -> Any:
        """
        :return: a picture, uint8 ``(height, width, 3)``, or None without a ``render_mode``
        :raises ImportError: if there is no OpenGL
        """
        with needs_opengl():
            return self.env.render()


class ControlEnv(gym.Env[np.ndarray, np.ndarray], EzPickle):
    """
    A task of URLB; ``gym.make("URLB/walker-flip-v0")`` makes one, with its time limit around it. A copy or a pickle of it is a
    new environment of the task.

    :param domain: the body, a key of :data:`MAKERS`
    :param task: what it is rewarded for
    :param render_mode: ``"rgb_array"`` or None
    :param width: of pictures
    :param height: of pictures
    :param camera_id: of pictures, a number or the name of a camera
    :raises ValueError: for an unknown ``render_mode``
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(
        self,
        domain: str,
        task: str,
        render_mode: str | None = None,
        *,
        width: int = 320,
        height: int = 240,
        camera_id: int | str = 0,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        EzPickle.__init__(self, domain, task, render_mode, width=width, height=height, camera_id=camera_id)
        pictures = {"width": width, "height": height, "camera_id": camera_id}
        self._dm_env: Any = MAKERS[domain](task)
        if domain in DOMAINS:
            self.task = RelabelingTask(domain, task)
        self._env = ControlWrapper(DmControlCompatibilityV0(self._dm_env, render_mode, pictures))
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self.render_mode = render_mode
        self.metadata = self._env.metadata
        self._is_open = True

    @property
    def dm_env(self) -> Any:
        """dm_control's environment, with ``physics`` and ``task``."""
        return self._dm_env

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Begin an episode.

        :param seed: seeds the initial states of this episode and those that follow
        :param options: not used
        :return: observation, float32 ``(dim,)``, and an empty info
        """
        super().reset(seed=seed)
        return self._env.reset(seed=seed, options=options)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: in [-1, 1], ``(n_actions,)``
        :return: observation, reward, whether the episode terminated and whether it was truncated (never), and an
            empty info
        :raises PhysicsError: if the simulation becomes unstable
        """
        # Past shimmy, whose conversions take a tenth of the time that the hopper takes.
        step = self._dm_env.step(self._env.scaled(action))
        return self._env.flat(step.observation), float(step.reward or 0.0), False, False, {}

    def render(self) -> Any:
        """
        :return: a picture, uint8 ``(height, width, 3)``, or None without a ``render_mode``
        :raises ImportError: if there is no OpenGL
        """
        return self._env.render()

    def close(self) -> None:
        """Free what MuJoCo holds."""
        if self._is_open:
            self._env.close()
        self._is_open = False
