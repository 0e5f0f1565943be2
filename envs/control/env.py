"""dm_control environments with flat observations, and the tasks of URLB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import ArrayLike
from shimmy.dm_control_compatibility import DmControlCompatibilityV0

from . import hopper, jaco, quadruped, walker
from .parameters import ParameterTable
from .relabel import DOMAINS, RelabelingTask
from .rendering import needs_opengl
from .spaces import FlatObservations, ScaledActions

MAKERS = {"walker": walker.make, "quadruped": quadruped.make, "hopper": hopper.make, "jaco": jaco.make}
"""Factory of dm_control's environment of a task, for each domain. It has no time limit: Gymnasium adds its own."""


class ControlWrapper(gym.Wrapper[np.ndarray, np.ndarray, Any, np.ndarray]):
    """
    Wrapper for the dm_control environments of shimmy, for algorithms that expect vectors: observations are concatenated to one
    float32 vector, in dm_control's order, and actions are scaled to [-1, 1].

    ``ControlWrapper(gym.make("dm_control/cheetah-run-v0"))``

    :param env: environment of shimmy
    :raises ValueError: for another environment, observations that are not numeric, or actions without bounds
    """

    def __init__(self, env: gym.Env[Any, np.ndarray]) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, DmControlCompatibilityV0):
            raise ValueError(f'ControlWrapper needs an environment of shimmy such as "dm_control/cheetah-run-v0", got {env}.')
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
        Start an episode.

        :param seed: seed of the initial states of this and the following episodes
        :param options: not used
        :return: observation, float32 ``(dim,)``, and an info
        """
        parts: Any
        parts, info = self.env.reset(seed=seed, options=options)
        return self.flat(parts), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Step the environment.

        :param action: action in [-1, 1], ``(n_actions,)``
        :return: observation, float32 ``(dim,)``, reward, terminated, truncated and an info
        """
        parts: Any
        parts, reward, terminated, truncated, info = self.env.step(self.scaled(action))
        return self.flat(parts), float(reward), terminated, truncated, info

    def render(self) -> Any:
        """
        Render the environment.

        :return: image, uint8 ``(height, width, 3)``, or None without a ``render_mode``
        :raises ImportError: if there is no OpenGL
        """
        with needs_opengl():
            return self.env.render()


class ControlEnv(gym.Env[np.ndarray, np.ndarray], EzPickle):
    """
    Task of URLB. ``gym.make("URLB/walker-flip-v0")`` makes one with its time limit. Copies and pickles are new environments of
    the same task, with the parameters of the constructor.

    :param domain: name of the domain, a key of :data:`MAKERS`
    :param task: name of the task
    :param render_mode: ``"rgb_array"`` or None
    :param parameter_scales: factors of physical parameters, by name (see
        :data:`~sb3_exdm.envs.control.parameters.PARAMETERS`): a number, or an array with the first axes of the parameter
    :param width: width of images, in pixels
    :param height: height of images, in pixels
    :param camera_id: number or name of the camera
    :raises ValueError: for an unknown ``render_mode``, or parameters that are unknown, impossible, or of the jaco
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(
        self,
        domain: str,
        task: str,
        render_mode: str | None = None,
        *,
        parameter_scales: Mapping[str, ArrayLike] | None = None,
        width: int = 320,
        height: int = 240,
        camera_id: int | str = 0,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        render_kwargs = {"width": width, "height": height, "camera_id": camera_id}
        EzPickle.__init__(self, domain, task, render_mode, parameter_scales=parameter_scales, **render_kwargs)
        self._dm_env: Any = MAKERS[domain](task)
        self._parameters: ParameterTable | None = None
        if domain in DOMAINS:
            self.task = RelabelingTask(domain, task)
            self._parameters = ParameterTable([self._dm_env.physics])
        if parameter_scales:
            self._parameter_table().scale({name: np.asarray(factor)[None] for name, factor in parameter_scales.items()})
        self._env = ControlWrapper(DmControlCompatibilityV0(self._dm_env, render_mode, render_kwargs))
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self.render_mode = render_mode
        self.metadata = self._env.metadata
        self._is_open = True

    @property
    def dm_env(self) -> Any:
        """Environment of dm_control, with ``physics`` and ``task``."""
        return self._dm_env

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """
        Copies of the physical parameters, by the names of :data:`~sb3_exdm.envs.control.parameters.PARAMETERS`.

        :raises ValueError: for the jaco
        """
        return {name: value[0] for name, value in self._parameter_table().read().items()}

    def set_parameters(self, values: Mapping[str, ArrayLike]) -> None:
        """
        Set physical parameters, from the next step on. They stay over resets. Positions and velocities do not change.
        ``task`` goes on relabeling with the parameters of the original robot.

        :param values: new values of some :attr:`parameters`
        :raises ValueError: for an unknown name, another shape or an impossible value (then nothing is changed), or the jaco
        """
        self._parameter_table().set({name: np.asarray(value)[None] for name, value in values.items()})

    def _parameter_table(self) -> ParameterTable:
        if self._parameters is None:
            raise ValueError("The parameters of the jaco are fixed: dm_control builds its model anew in every episode.")
        return self._parameters

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the initial states of this and the following episodes
        :param options: not used
        :return: observation, float32 ``(dim,)``, and an empty info
        """
        super().reset(seed=seed)
        return self._env.reset(seed=seed, options=options)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Step the environment.

        :param action: action in [-1, 1], ``(n_actions,)``
        :return: observation, float32 ``(dim,)``, reward, False, False (only the time limit ends episodes) and an empty info
        :raises PhysicsError: if the simulation becomes unstable
        """
        # Not through shimmy: its conversions take a tenth of the time of a step of the hopper.
        step = self._dm_env.step(self._env.scaled(action))
        return self._env.flat(step.observation), float(step.reward or 0.0), False, False, {}

    def render(self) -> Any:
        """
        Render the environment.

        :return: image, uint8 ``(height, width, 3)``, or None without a ``render_mode``
        :raises ImportError: if there is no OpenGL
        """
        return self._env.render()

    def close(self) -> None:
        """Free MuJoCo's resources."""
        if self._is_open:
            self._env.close()
        self._is_open = False
