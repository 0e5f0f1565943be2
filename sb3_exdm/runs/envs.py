"""Environments of runs, from an id, a spec, a class or a function; factories for those that need more."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_exdm.common.env_wrappers import CopyObservation, PolicyObservation, policy_space
from sb3_exdm.common.registry import Registry
from sb3_exdm.common.resources import check_memory
from sb3_exdm.common.spaces import is_bounded_vector
from sb3_exdm.common.validation import Between, check_value, did_you_mean, shown
from sb3_exdm.envs import Maze2dSB3VecEnv, SB3VecEnv
from sb3_exdm.envs.urlb import TASKS, VECTORIZED_DOMAINS
from sb3_exdm.metrics import StateCoverage

EpisodeSteps = Annotated[int, Between(1, 10**6)]
"""Limit on the steps of an episode, without which an evaluation may never end."""

VEC_ENVS: dict[str, type[DummyVecEnv] | type[SubprocVecEnv] | None] = {
    "auto": None,
    "dummy": DummyVecEnv,
    "subproc": SubprocVecEnv,
}
"""Ways to step several environments: the fastest in one process, one after another, or each in a process of its own."""

MAX_ID = 100
"""Most characters in the id of an environment, part of the name of its run folder."""
PROCESS_BYTES = 100 * 2**20
"""Memory of a process with an environment, at least: the interpreter and PyTorch."""

EnvLike = str | EnvSpec | type[gym.Env] | Callable[..., gym.Env]
"""Environments that recipes accept."""


class EnvFactory:
    """
    Base class of env factories. A subclass, registered for a prefix of ids with ``@register_env_factory(prefix)``,
    overrides the methods that differ from Gymnasium's defaults.
    """

    module: str | None = None
    """Module that registers the ids, imported in worker processes."""

    def wrapper(self) -> type[gym.Wrapper] | None:
        """
        Wrapper around every single environment, None for none. Called before Gymnasium looks for the id, so that its
        imports come first.
        """
        return None

    def make_vec(self, env_id: str, n_envs: int, seed: int, env_kwargs: dict[str, Any]) -> VecEnv | None:
        """
        Make a fast vectorized environment.

        :param env_id: registered id
        :param n_envs: number of environments
        :param seed: seed
        :param env_kwargs: arguments of the environment
        :return: the VecEnv, or None to step single environments one after another
        """
        return None

    def coverage(self, env_id: str, env_kwargs: dict[str, Any]) -> StateCoverage | None:
        """
        State coverage, where a map of the environment is known.

        :param env_id: registered id
        :param env_kwargs: arguments of the environment
        """
        return None

    def coverage_dims(self, env_id: str) -> Sequence[int] | None:
        """
        Dimensions of the observation whose visited bins describe exploration; None for the first two.

        :param env_id: registered id
        """
        return None

    def expert_return(self, env_id: str) -> float | None:
        """
        Published return of an expert, which normalized scores are divided by.

        :param env_id: registered id
        """
        return None


ENV_FACTORIES: Registry[type[EnvFactory]] = Registry("env factory")
"""Factories by the prefix of the ids."""
register_env_factory = ENV_FACTORIES.register
"""Return a decorator that registers a subclass of :class:`EnvFactory` for a prefix of ids."""


@register_env_factory("Maze2d-")
class MazeFactory(EnvFactory):
    """The mazes, moved by numpy without a loop over them."""

    module = "sb3_exdm.envs"

    def make_vec(self, env_id: str, n_envs: int, seed: int, env_kwargs: dict[str, Any]) -> VecEnv:
        return Maze2dSB3VecEnv(n_envs=n_envs, seed=seed, **{"layout": env_id, **env_kwargs})

    def coverage(self, env_id: str, env_kwargs: dict[str, Any]) -> StateCoverage:
        return StateCoverage(env_kwargs.get("layout", env_id))


@register_env_factory("URLB/")
class URLBFactory(EnvFactory):
    """The robots of URLB, stepped in one process where possible."""

    module = "sb3_exdm.envs"

    def make_vec(self, env_id: str, n_envs: int, seed: int, env_kwargs: dict[str, Any]) -> VecEnv | None:
        if env_id not in TASKS or TASKS[env_id].domain not in VECTORIZED_DOMAINS:
            return None
        settings = {"autoreset_mode": AutoresetMode.SAME_STEP, **env_kwargs}
        return SB3VecEnv(gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point", **settings), seed)

    def coverage_dims(self, env_id: str) -> Sequence[int] | None:
        return TASKS[env_id].coverage_dims if env_id in TASKS else None

    def expert_return(self, env_id: str) -> float | None:
        return TASKS[env_id].expert_return if env_id in TASKS else None


@register_env_factory("dm_control/")
class ShimmyFactory(EnvFactory):
    """dm_control's own tasks through shimmy, with flat observations and actions in [-1, 1]."""

    def wrapper(self) -> type[gym.Wrapper]:
        # Before Gymnasium lets shimmy register its environments, because this import chooses the renderer.
        from sb3_exdm.envs.control import ControlWrapper

        return ControlWrapper


def env_factory(env_id: str) -> EnvFactory:
    """
    Find the factory of an id.

    :param env_id: id of an environment
    :return: the one with the longest matching prefix, or Gymnasium's defaults
    """
    matching = [prefix for prefix in ENV_FACTORIES if env_id.startswith(prefix)]
    return ENV_FACTORIES[max(matching, key=len)]() if matching else EnvFactory()


@dataclass(frozen=True)
class EnvSource:
    """
    An environment that can be made any number of times.

    :param id: registered id, or the name of a class or function
    :param make: makes one environment; None if ``id`` is registered
    :param module: module that registers the id
    """

    id: str
    make: Callable[..., gym.Env] | None = None
    module: str | None = None

    @classmethod
    def of(cls, env: EnvLike) -> "EnvSource":
        """
        Read an environment argument.

        :param env: id, which may be ``"module:ID"``, spec, environment class, or function that returns an environment
        :raises ValueError: for an unknown id, or a module that cannot be imported
        :raises TypeError: for anything else, such as an environment that exists already
        """
        if isinstance(env, EnvSpec):
            return cls(env.id) if gym.registry.get(env.id) == env else cls(env.id, lambda **kwargs: gym.make(env, **kwargs))
        if isinstance(env, str):
            if not env or len(env) > MAX_ID:
                raise ValueError(f"An id of an environment has 1 to {MAX_ID} characters, got {shown(env)}.")
            module, _, env_id = env.rpartition(":")
            if module:
                import_user_module(module)
            source = cls(env_id, None, module or None)
            source.spec()
            return source
        if isinstance(env, (gym.Env, VecEnv)) or not callable(env):
            raise TypeError(
                f"env must be an id, a spec, an environment class or a function that returns an environment, got {env!r}: "
                "several copies are made of it."
            )
        return cls(getattr(env, "__name__", type(env).__name__), env)

    @property
    def factory(self) -> EnvFactory:
        """Factory of the id."""
        return env_factory(self.id) if self.make is None else EnvFactory()

    def spec(self) -> EnvSpec | None:
        """
        Gymnasium's spec of the environment; None for a class or a function.

        :raises ValueError: for an unknown id
        """
        if self.make is not None:
            return None
        self.factory.wrapper()
        try:
            return gym.spec(self.id)
        except gym.error.Error as error:
            hint = did_you_mean(self.id, gym.registry)
            raise ValueError(
                f"Cannot make the environment {self.id!r}{hint}: {error} If a module of yours registers it, import it first, "
                f'or write "module:{self.id}".'
            ) from error

    def max_episode_steps(self) -> int | None:
        """Time limit of an episode, None where it is not known."""
        spec = self.spec()
        return None if spec is None else spec.max_episode_steps

    def make_vec(self, n_envs: int, seed: int, env_kwargs: dict[str, Any] | None = None, vec_env: str = "auto") -> VecEnv:
        """
        Make a VecEnv.

        :param n_envs: number of environments
        :param seed: seed of the environments
        :param env_kwargs: arguments of the environment
        :param vec_env: a key of :data:`VEC_ENVS`
        :raises ValueError: if the environment cannot be made
        """
        env_kwargs = env_kwargs or {}
        if self.make is None and env_kwargs.get("max_episode_steps") is not None:  # an argument of gymnasium.make
            check_value("env_kwargs['max_episode_steps']", env_kwargs["max_episode_steps"], EpisodeSteps)
        factory = self.factory
        if vec_env == "subproc":
            check_memory(n_envs * PROCESS_BYTES, f"A process for each of {n_envs:,} environments", "lower n_envs")
        self.spec()  # fails early and briefly
        try:
            if self.make is None and vec_env == "auto":
                fast = factory.make_vec(self.id, n_envs, seed, env_kwargs)
                if fast is not None:
                    return fast
            module = self.module or factory.module
            # Worker processes may not have imported the module that registers the id.
            env: Any = self.make or (f"{module}:{self.id}" if module else self.id)
            return make_vec_env(
                env,
                n_envs=n_envs,
                seed=seed,
                env_kwargs=env_kwargs,
                wrapper_class=partial(_for_stable_baselines, wrapper=factory.wrapper()),
                vec_env_cls=VEC_ENVS[vec_env],
            )
        except MemoryError:
            raise ValueError(f"There is no memory for {n_envs:,} environments {self.id!r}; lower n_envs.") from None
        except (EOFError, ConnectionError) as error:
            raise ValueError(f"Cannot make the environment {self.id!r}: a process of it ended at once.") from error
        except Exception as error:  # the code of an environment raises anything for arguments that it does not expect
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"Cannot make the environment {self.id!r}: {reason}") from error

    def check_kwargs(self, env_kwargs: dict[str, Any]) -> None:
        """
        Take a step in an environment of its own, since wrong arguments may show only then, when files of a run are written.

        :param env_kwargs: arguments of the environment; nothing is done without
        :raises ValueError: if the environment cannot be made or stepped
        """
        if not env_kwargs:
            return
        env = self.make_vec(1, 0, env_kwargs)
        try:
            env.reset()
            env.step(np.array([env.action_space.sample()]))
        except Exception as error:  # as in make_vec
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"Cannot step the environment {self.id!r} with {shown(env_kwargs)}: {reason}") from error
        finally:
            env.close()


def _for_stable_baselines(env: gym.Env, wrapper: type[gym.Wrapper] | None) -> gym.Env:
    if wrapper is not None:
        env = wrapper(env)
    is_readable = policy_space(env.observation_space) == env.observation_space
    return CopyObservation(env if is_readable else PolicyObservation(env))


def import_user_module(name: str) -> None:
    """
    Import a module that registers something, from the working directory too, as ``python -m`` does.

    :param name: dotted name
    :raises ValueError: if it cannot be imported
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"Cannot import the module {name!r}: {error}.") from error


def needs_normalization(observation_space: spaces.Space) -> bool:
    """
    Tell observations that must be standardized for a policy: vectors without finite bounds.

    :param observation_space: observation space
    """
    if isinstance(observation_space, spaces.Dict):
        return any(needs_normalization(part) for part in observation_space.spaces.values())
    return (
        isinstance(observation_space, spaces.Box)
        and not is_image_space(observation_space)
        and not is_bounded_vector(observation_space)
    )


def normalized(env: VecEnv) -> VecEnv:
    """
    Standardize observations where that is needed; rewards stay as they are.

    :param env: environment
    """
    return VecNormalize(env, norm_reward=False) if needs_normalization(env.observation_space) else env
