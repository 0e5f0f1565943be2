"""Vectorized dm_control suite: many simulations in one process, without the Python overhead of dm_control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from dm_control.rl.control import PhysicsError
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

from .domain import Readings
from .parameters import ParameterTable
from .relabel import DOMAINS, RelabelingTask
from .rendering import needs_opengl
from .spaces import FlatObservations, ScaledActions
from .threads import ThreadTeam, choose_num_threads


class ControlVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """
    Vectorized URLB task, as made by ``gym.make_vec("URLB/walker-walk-v0", num_envs=8)``.

    dm_control resets the sub-envs. In between, MuJoCo is stepped directly, on several threads, and observations and rewards
    are computed for all sub-envs at once. Sub-env ``i`` equals the environment of ``gym.make`` with the seed ``seed + i``, bit
    by bit, with any number of threads.

    Each sub-env can have its own masses, damping, friction or gravity::

        scales = np.linspace(0.5, 2.0, 8)
        envs = gym.make_vec("URLB/walker-walk-v0", num_envs=8, parameter_scales={"body_mass": scales, "body_inertia": scales})

    :param num_envs: number of sub-envs
    :param max_episode_steps: number of steps after which an episode is truncated
    :param domain: name of the domain, a key of :data:`~sb3_exdm.envs.control.relabel.DOMAINS`
    :param task: name of the task
    :param autoreset_mode: autoreset mode of Gymnasium, for sub-envs whose episode ended
    :param num_threads: number of threads that simulate, 1 for none besides the calling one; None chooses by the number of CPUs
        of this process and ``num_envs``
    :param parameter_scales: factors of physical parameters, by name (see
        :data:`~sb3_exdm.envs.control.parameters.PARAMETERS`), ``(num_envs,)`` or with further axes of the parameter
    :param render_mode: ``"rgb_array"`` (one image per sub-env) or None
    :param width: width of images, in pixels
    :param height: height of images, in pixels
    :param camera_id: number or name of the camera
    :raises ValueError: if an argument is out of range or unknown
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so, and every env makes its own copy
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 1000,
        *,
        domain: str,
        task: str,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int | None = None,
        parameter_scales: Mapping[str, ArrayLike] | None = None,
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        camera_id: int | str = 0,
    ) -> None:
        for name, value in {"num_envs": num_envs, "max_episode_steps": max_episode_steps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if num_threads is not None and not (isinstance(num_threads, int | np.integer) and num_threads >= 1):
            raise ValueError(f"num_threads must be an integer of at least 1, or None, got {num_threads!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        if domain not in DOMAINS:
            raise ValueError(f"The domain {domain!r} is not vectorized; choose one of {', '.join(DOMAINS)}.")
        vectorized = DOMAINS[domain]
        self.task = RelabelingTask(domain, task)
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self._render_kwargs = {"width": width, "height": height, "camera_id": camera_id}

        self._envs = [vectorized.make(task) for _ in range(num_envs)]
        first = self._envs[0]
        self.metadata = {
            **self.metadata,
            "autoreset_mode": self.autoreset_mode,
            "render_fps": round(1 / first.control_timestep()),
        }
        self._n_substeps = round(first.control_timestep() / first.physics.timestep())
        self._reward = vectorized.rewards[task]
        self._parameters = ParameterTable([env.physics for env in self._envs])
        self._parameters.scale(parameter_scales or {})

        flat = FlatObservations(first.observation_spec())
        self.single_observation_space = flat.space
        action_spec = first.action_spec()
        self._scaled = ScaledActions(action_spec.minimum, action_spec.maximum)
        self.single_action_space = self._scaled.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._readings = Readings([vectorized.reader(env.physics) for env in self._envs], flat.dim)
        self._actions = np.zeros(self.action_space.shape or ())
        self._warnings = np.zeros((num_envs, first.physics.data.warning.number.size), dtype=np.int32)
        self._pointers = [(env.physics.model.ptr, env.physics.data.ptr) for env in self._envs]
        self._controls = [(env.physics.data.ctrl, actions) for env, actions in zip(self._envs, self._actions, strict=True)]
        self._copies = [
            [(self._warnings[i], env.physics.data.warning.number), *self._readings.copies(i, i)]
            for i, env in enumerate(self._envs)
        ]
        self.num_threads = choose_num_threads(num_envs) if num_threads is None else min(int(num_threads), num_envs)
        self._threads = ThreadTeam(self.num_threads)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._finished = np.zeros(num_envs, dtype=bool)  # episodes that ended and are not reset yet
        self._has_begun = False

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """
        Physical parameters of the sub-envs, copies of shape ``(num_envs, ...)``, by the names of
        :data:`~sb3_exdm.envs.control.parameters.PARAMETERS`.
        """
        return self._parameters.read()

    def set_parameters(self, values: Mapping[str, ArrayLike]) -> None:
        """
        Set physical parameters of the sub-envs, from the next step on. They stay over resets. Positions and velocities do not
        change. :attr:`task` goes on relabeling with the parameters of the original robot.

        :param values: new values of some :attr:`parameters`, each ``(num_envs, ...)``
        :raises ValueError: for an unknown name, another shape or an impossible value; then nothing is changed
        """
        self._parameters.set(values)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode in all sub-envs, or in some of them.

        :param seed: seed, ``seed + i`` for sub-env ``i``, or a list with one seed or None per sub-env
        :param options: ``{"reset_mask": mask}`` resets only some sub-envs, mask bool ``(num_envs,)``
        :return: observations, float32 ``(num_envs, dim)``, and an empty info
        :raises ValueError: if the mask has another shape or type, or is False everywhere
        """
        mask = np.ones(self.num_envs, dtype=bool) if not options else np.asarray(options.get("reset_mask", True))
        mask = np.broadcast_to(mask, self.num_envs) if mask.ndim == 0 else mask
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f'options["reset_mask"] must be bool, of shape ({self.num_envs},), and name at least one env.')
        if not self._has_begun and not mask.all():
            raise ResetNeeded("The first reset must be of all envs.")
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"Expected {self.num_envs} seeds, got {len(seeds)}.")
        for env, own_seed, is_reset in zip(self._envs, seeds, mask.tolist(), strict=True):
            if is_reset and own_seed is not None:
                env.task._random = np.random.RandomState(own_seed)  # as in shimmy
        self._start_episodes(np.flatnonzero(mask))
        self._has_begun = True
        return self._readings.compute()[0], {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Step all sub-envs.

        :param actions: actions in [-1, 1], ``(num_envs, n_actions)``
        :return: observations ``(num_envs, dim)``, rewards, terminations (always False), truncations ``(num_envs,)``, and
            infos, in the mode ``SAME_STEP`` with the last observations of episodes in ``infos["final_obs"]``
        :raises ValueError: if the actions have another shape or are not finite
        :raises PhysicsError: if a simulation becomes unstable, as in dm_control
        """
        if self.closed:
            raise ClosedEnvironmentError("The environment is closed; make a new one.")
        if not self._has_begun:
            raise ResetNeeded("Call reset before step.")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(f"Expected finite actions of shape {self.action_space.shape}, got {actions.shape}.")
        restarted = np.flatnonzero(self._finished)
        if restarted.size and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(f"The episodes of the envs {restarted.tolist()} ended: reset them.")

        self._actions[:] = self._scaled(actions)
        self._threads.run(self._step_physics, np.flatnonzero(~self._finished).tolist())
        if self._warnings.any():
            raise PhysicsError(f"The simulation of sub-env {np.flatnonzero(self._warnings.any(axis=1))[0]} became unstable.")
        observations, quantities = self._readings.compute()
        rewards = np.array(self._reward(*quantities), dtype=np.float64)
        self._elapsed += 1
        if restarted.size:  # this step only resets them
            self._start_episodes(restarted)
            observations, _ = self._readings.compute()
            rewards[restarted] = 0.0
        truncations = self._elapsed >= self.max_episode_steps
        self._finished = truncations.copy()
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and truncations.any():
            infos = self._final_infos(observations, np.flatnonzero(truncations))
            self._start_episodes(np.flatnonzero(truncations))
            observations, _ = self._readings.compute()
        return observations, rewards, np.zeros(self.num_envs, dtype=bool), truncations, infos

    def _step_physics(self, i: int) -> None:
        """Take a control step in a sub-env. The three calls of MuJoCo release the interpreter lock."""
        model, data = self._pointers[i]
        control, action = self._controls[i]
        control[...] = action
        # dm_control's order: observations belong to the state after the step.
        mujoco.mj_step2(model, data)
        if self._n_substeps > 1:
            mujoco.mj_step(model, data, self._n_substeps - 1)
        mujoco.mj_step1(model, data)
        self._read(i)

    def _read(self, i: int) -> None:
        """Copy what the observation of a sub-env is computed from."""
        for target, source in self._copies[i]:
            target[...] = source

    def _start_episodes(self, indices: np.ndarray) -> None:
        """Reset some sub-envs with dm_control."""
        for i in indices.tolist():
            self._envs[i].reset()
            self._read(i)
        self._elapsed[indices] = 0
        self._finished[indices] = False

    def _final_infos(self, observations: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
        """Make infos with the last observations of the sub-envs whose episode ended."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_obs[ended] = np.fromiter(observations[ended], dtype=object, count=ended.size)
        has_ended = self._finished.copy()
        return {"final_obs": final_obs, "_final_obs": has_ended, "final_info": {}, "_final_info": has_ended}

    def capture_state(self) -> dict[str, Any]:
        """Return the state of all sub-envs, of their physical parameters and of their generators; copies."""
        return {
            "physics": np.stack([self._read_state(i) for i in range(self.num_envs)]),  # (num_envs, size)
            "generators": [env.task._random.get_state(legacy=False) for env in self._envs],
            "parameters": self.parameters,
            "elapsed": self._elapsed.copy(),
            "finished": self._finished.copy(),
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state, bit by bit.

        :param state: from :meth:`capture_state`
        """
        self.set_parameters(state["parameters"])
        for i, (env, physics, generator) in enumerate(zip(self._envs, state["physics"], state["generators"], strict=True)):
            env.task._random.set_state(generator)
            model, data = self._pointers[i]
            mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
            mujoco.mj_step1(model, data)  # what depends on positions and velocities, which the next step begins with
            self._read(i)
        self._elapsed[:], self._finished[:] = state["elapsed"], state["finished"]
        self._has_begun = True

    def _read_state(self, i: int) -> np.ndarray:
        """All that the next steps of MuJoCo depend on, warm start included, ``(size,)``."""
        model, data = self._pointers[i]
        state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    def render(self) -> tuple[np.ndarray, ...] | None:
        """
        Render all sub-envs.

        :return: one image per sub-env, uint8 ``(height, width, 3)``, or None without a ``render_mode``
        :raises ImportError: if there is no OpenGL
        """
        if self.render_mode is None:
            gym.logger.warn('There is no render_mode; pass gym.make_vec(..., render_mode="rgb_array") for images.')
            return None
        with needs_opengl():
            return tuple(env.physics.render(**self._render_kwargs) for env in self._envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads, and free MuJoCo's and OpenGL's resources."""
        self._threads.close()
        for env in self._envs:
            env.physics.free()
