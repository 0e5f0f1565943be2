"""
State of a graph of objects: read as plain data and tensors, and written back into a graph that was built in the same way.

A training is resumed by building its objects anew from the configuration and restoring what has changed since: every attribute
of every object that can be reached, of any class. No class is looked up by name, and nothing is unpickled.
"""

import enum
import functools
import io
import random
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from tqdm.auto import tqdm


class StateError(ValueError):
    """State that cannot be captured or restored; the message names the attribute."""


class Derived:
    """Base class of objects that are computed from others, or shown. They are no part of the state: their owner makes them."""

    __slots__ = ()


@runtime_checkable
class HasState(Protocol):
    """Object that knows its own state."""

    def capture_state(self) -> dict[str, Any]:
        """Return the state: nested dicts and lists of tensors, arrays, numbers, strings and generators."""

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`capture_state` returned."""


@runtime_checkable
class BuildsLate(Protocol):
    """Object some of whose attributes are built during training."""

    def build_missing(self, names: Collection[str]) -> None:
        """
        Build attributes that the state holds, but a new object does not have yet.

        :param names: names of the attributes
        """


@runtime_checkable
class Recomputes(Protocol):
    """Object with attributes of type :class:`Derived`."""

    def recompute(self) -> None:
        """Make these attributes again from the restored ones."""


class GlobalGenerators:
    """The global random generators of Python, NumPy and PyTorch."""

    def capture_state(self) -> dict[str, Any]:
        """Return the states of the generators."""
        cuda = th.cuda.get_rng_state_all() if th.cuda.is_available() and th.cuda.is_initialized() else []
        numpy_state: Any = np.random.get_state(legacy=False)
        return {"python": random.getstate(), "numpy": numpy_state, "torch": th.get_rng_state(), "cuda": cuda}

    def restore_state(self, state: dict[str, Any]) -> None:
        """
        Restore the states of the generators.

        :param state: from :meth:`capture_state`
        """
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        th.set_rng_state(state["torch"])
        if state["cuda"]:
            th.cuda.set_rng_state_all(state["cuda"])


# Not state: code, descriptions, what belongs to a process, and what is computed again before it is used.
_CALLABLES = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
_CONSTANTS = (types.ModuleType, type, th.device, th.dtype, np.dtype, enum.Enum, PurePath, EnvSpec)
_TRANSIENT = (tqdm, io.IOBase, Derived, th.distributions.Distribution)
_PLAIN = (bool, int, float, str, type(None))
_HIDDEN: dict[type, tuple[str, ...]] = {
    # They lead out of a callback, to the variables of the training loop and to the model.
    BaseCallback: ("locals", "globals", "model", "parent"),
    VecEnvWrapper: ("class_attributes",),
}
"""Attributes that are not state, by the class that has them."""
_HEAP_TYPE = 1 << 9
"""Flag of classes that are written in Python."""
_MISSING: Any = object()


def capture(root: Any, *, without: Iterable[Any] = (), is_env: bool = False) -> Any:
    """
    Read the state of everything that can be reached from an object.

    Functions, classes, devices, spaces but for their generators, loggers, files and environments of Stable-Baselines3 are
    left out. Tensors and arrays of the result share their memory with the objects.

    :param root: object, or a container of objects
    :param without: arrays that are left out
    :param is_env: the object is an environment, of which nothing may be left out: a closure may hide state
    :return: tree for :func:`~sb3_exdm.common.serialization.save_tree`
    :raises StateError: for an object whose state is not known
    """
    return _Capture({id(array) for array in without}, is_env).node(root, "")


def restore(root: Any, tree: Any, *, has_grown: bool = False) -> None:
    """
    Write a state into objects that were built as those that it was read from.

    :param root: object, or a container of objects; changed in place
    :param tree: from :func:`capture`
    :param has_grown: arrays may be longer than before, in memories of a run to which steps were added
    :raises StateError: if the objects are not of the same kinds
    """
    restorer = _Restore(has_grown)
    restorer.value(tree, root, "")
    for owner in restorer.owners:
        owner.recompute()


def has_same_objects(tree: Any, other: Any) -> bool:
    """
    Tell whether a state can be restored into the objects of another one, of which none was built later.

    :param tree: state to restore, from :func:`capture`
    :param other: state of the objects to restore it into
    """
    return _objects(tree, "").items() <= _objects(other, "").items()


def _objects(node: Any, path: str) -> dict[str, str]:
    """Kinds of the objects of a state that cannot be built from it, by their place."""
    if not isinstance(node, dict):
        return {}
    found = {path: node["type"]} if "type" in node else {}
    for kind in ("generator", "state", "optimizer"):
        found |= {path: kind} if kind in node else {}
    for kind in ("object", "dict"):
        for name, item in node.get(kind, ()):
            found |= _objects(item, f"{path}.{name}")
    for kind in ("list", "tuple"):
        for i, item in enumerate(node.get(kind, ())):
            found |= _objects(item, f"{path}.{i}")
    return found


class _Capture:
    """One pass over a graph. Objects that are reached twice are written once, and referred to by number."""

    def __init__(self, without: set[int], is_env: bool) -> None:
        self._without = without
        self._is_env = is_env
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # a number must not be used again for a new object at the same address

    def node(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):  # first, because np.float64 is a float
            return {"scalar": _array_node(np.asarray(value))}
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            return value
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if self._is_skipped(value, path):
            return {"skipped": type(value).__name__}
        if id(value) in self._numbers:
            return {"ref": self._numbers[id(value)]}
        number = self._numbers[id(value)] = len(self._kept)
        self._kept.append(value)
        return {**self._content(value, path), "id": number}

    def _is_skipped(self, value: Any, path: str) -> bool:
        if id(value) in self._without or isinstance(value, _CONSTANTS):
            return True
        if not self._is_env:
            is_env = isinstance(value, VecEnv) and not isinstance(value, VecEnvWrapper)
            return is_env or isinstance(value, (*_CALLABLES, *_TRANSIENT))
        if isinstance(value, types.FunctionType) and not value.__closure__:
            return True
        if isinstance(value, _CALLABLES):
            raise StateError(f"{path.lstrip('.')} is a function with data of its own, which may be state.")
        return False

    def _content(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, th.Tensor):
            return {"tensor": value.detach(), "device": str(value.device), "requires_grad": value.requires_grad}
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise StateError(f"{path.lstrip('.')} is an array of objects: only numbers can be restored.")
            return {"array": _array_node(value)}
        if (state := _generator_state(value)) is not None:
            return {"generator": self.node(state, path)}
        if isinstance(value, spaces.Space):
            return {"space": [self.node(value._np_random, path), self.node(_parts(value), path)]}
        if isinstance(value, th.optim.Optimizer):
            return {"optimizer": self.node(value.state_dict(), path)}
        if isinstance(value, Logger):
            return {"logger": self.node([dict(part) for part in _accumulators(value)], path)}
        if _is(type(value), HasState):
            return {"state": self.node(value.capture_state(), path)}
        if isinstance(value, dict):
            return {"dict": [[self._key(key, path), self.node(item, f"{path}[{key!r}]")] for key, item in value.items()]}
        if isinstance(value, (list, tuple, deque)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.node(item, f"{path}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, (set, frozenset)):
            return {"set": [self.node(item, path) for item in value]}
        if not _is_python_object(value):
            raise StateError(
                f"The state of {path.lstrip('.')} is not known: it is a {type(value).__module__}.{type(value).__qualname__}."
            )
        return {
            "type": type(value).__qualname__,
            "object": [[name, self.node(item, f"{path}.{name}")] for name, item in _attributes(value)],
        }

    def _key(self, key: Any, path: str) -> Any:
        if type(key) in _PLAIN or isinstance(key, (tuple, bytes)):
            return self.node(key, path)
        raise StateError(f"{path.lstrip('.')} has a key of type {type(key).__name__}: only plain ones can be restored.")


class _Restore:
    """One pass over a tree, with the objects that it is written to."""

    def __init__(self, has_grown: bool) -> None:
        self._has_grown = has_grown
        self.owners: list[Recomputes] = []
        self._made: dict[int, Any] = {}
        self._claimed: dict[int, Any] = {}

    def value(self, node: Any, old: Any, path: str) -> Any:
        """Restore ``old`` in place where that is possible; return what takes its place."""
        if not isinstance(node, dict):
            return node
        if "skipped" in node:
            return None if old is _MISSING else old
        if "ref" in node:
            return self._made[node["ref"]]
        if "scalar" in node:
            return _to_array(node["scalar"])[()]
        if "bytes" in node:
            return bytes.fromhex(node["bytes"])
        new = self._content(node, old, path)
        self._made[node["id"]] = new
        return new

    def _content(self, node: dict[str, Any], old: Any, path: str) -> Any:
        if "tensor" in node:
            return self._tensor(node, old)
        if "array" in node:
            return self._array(_to_array(node["array"]), old)
        if "generator" in node:
            return _set_generator(self._fresh(node["generator"], path), old, path)
        if "space" in node:
            return self._space(node["space"], old, path)
        if "optimizer" in node:
            self._expect(old, th.optim.Optimizer, path).load_state_dict(self._fresh(node["optimizer"], path))
            return old
        if "logger" in node:
            if isinstance(old, Logger):
                for part, saved in zip(_accumulators(old), self._fresh(node["logger"], path), strict=True):
                    part.clear()
                    part.update(saved)
            return old
        if "state" in node:
            self._expect(old, HasState, path).restore_state(self._fresh(node["state"], path))
            return old
        if "dict" in node:
            return self._dict(node, old, path)
        if "set" in node:
            return {self.value(item, _MISSING, path) for item in node["set"]}
        if "object" in node:
            return self._object(node, old, path)
        return self._sequence(node, old, path)

    def _fresh(self, node: Any, path: str) -> Any:
        return self.value(node, _MISSING, path)

    @staticmethod
    def _expect(old: Any, kind: Any, path: str) -> Any:
        if not isinstance(old, kind):
            raise StateError(_built_late(path))
        return old

    def _claim(self, old: Any) -> bool:
        """Tell whether memory may be written to: not if another value of the state was written there."""
        if id(old) in self._claimed:
            return False
        self._claimed[id(old)] = old
        return True

    @th.no_grad()
    def _tensor(self, node: dict[str, Any], old: Any) -> th.Tensor:
        saved = node["tensor"]
        fits = isinstance(old, th.Tensor) and old.shape == saved.shape and old.dtype == saved.dtype
        if fits and not old.is_inference() and self._claim(old):
            old.data.copy_(saved)
            return old
        return saved.to(node["device"]).clone().requires_grad_(node["requires_grad"])

    def _array(self, saved: np.ndarray, old: Any) -> np.ndarray:
        if not isinstance(old, np.ndarray) or old.dtype != saved.dtype or not old.flags.writeable:
            return saved
        if old.shape == saved.shape and self._claim(old):
            old[...] = saved
            return old
        if self._has_grown and old.shape[1:] == saved.shape[1:] and old.size > saved.size:
            old[: len(saved)] = saved
            return old
        return saved

    def _space(self, node: Any, old: Any, path: str) -> Any:
        generator, parts = node
        if isinstance(old, spaces.Space):
            if generator is not None and old._np_random is None:
                old.seed(0)
            self.value(generator, old._np_random, path)
            self.value(parts, _parts(old), path)
        return old

    def _dict(self, node: dict[str, Any], old: Any, path: str) -> Any:
        target = old if isinstance(old, dict) else {}
        if target is not old and _has_skipped(item for _, item in node["dict"]):
            return None if old is _MISSING else old
        self._made[node["id"]] = target
        new = {}
        for key_node, item in node["dict"]:
            key = self.value(key_node, _MISSING, path)
            new[key] = self.value(item, target.get(key, _MISSING), f"{path}[{key!r}]")
        target.clear()
        target.update(new)
        return target

    def _sequence(self, node: dict[str, Any], old: Any, path: str) -> Any:
        is_tuple = "tuple" in node
        nodes = node["tuple"] if is_tuple else node["list"]
        same = isinstance(old, tuple) if is_tuple else isinstance(old, (list, deque))
        if _has_skipped(nodes) and not (same and len(old) == len(nodes)):
            return None if old is _MISSING else old
        items = list(old) if same else []
        if not is_tuple and same:
            self._made[node["id"]] = old
        items += [_MISSING] * (len(nodes) - len(items))
        new = [self.value(item, items[i], f"{path}[{i}]") for i, item in enumerate(nodes)]
        if is_tuple:
            if same and len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True)):
                return old
            return type(old)(*new) if same and type(old) is not tuple else tuple(new)
        if not same:
            return new
        old.clear()
        old.extend(new)
        return old

    def _object(self, node: dict[str, Any], old: Any, path: str) -> Any:
        if old is _MISSING or type(old).__qualname__ != node["type"]:
            raise StateError(_built_late(path))
        self._made[node["id"]] = old
        present = dict(_attributes(old))
        if _is(type(old), BuildsLate) and (late := [name for name, _ in node["object"] if name not in present]):
            old.build_missing(late)
            present = dict(_attributes(old))
        for name, item in node["object"]:
            before = present.get(name, _MISSING)
            after = self.value(item, before, f"{path}.{name}")
            if after is not before:
                object.__setattr__(old, name, after)
        if _is(type(old), Recomputes):
            self.owners.append(old)
        return old


_follows: dict[tuple[type, type], bool] = {}


def _is(cls: type, protocol: type) -> bool:
    """Tell whether a class follows a protocol; the check takes long, and is made for few classes."""
    if (cls, protocol) not in _follows:
        _follows[cls, protocol] = issubclass(cls, protocol)
    return _follows[cls, protocol]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, in ``__dict__`` and in slots."""
    hidden = [name for cls, names in _HIDDEN.items() if isinstance(value, cls) for name in names]
    slots = [name for cls in type(value).__mro__ for name in cls.__dict__.get("__slots__", ())]
    for name in slots:
        if name not in ("__dict__", "__weakref__") and hasattr(value, name):
            yield name, getattr(value, name)
    if hasattr(value, "__dict__"):
        yield from ((name, item) for name, item in vars(value).items() if name not in hidden)


def _is_python_object(value: Any) -> bool:
    """Tell objects whose classes are all written in Python, so that nothing is hidden in C."""
    return all(cls is object or cls.__flags__ & _HEAP_TYPE for cls in type(value).__mro__) and (
        hasattr(value, "__dict__") or any("__slots__" in cls.__dict__ for cls in type(value).__mro__)
    )


def _array_node(array: np.ndarray) -> dict[str, Any]:
    data = th.frombuffer(bytearray(array.tobytes()), dtype=th.uint8) if array.nbytes else th.zeros(0, dtype=th.uint8)
    return {"bytes": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def _to_array(node: dict[str, Any]) -> np.ndarray:
    data = node["bytes"].numpy().tobytes()
    return np.frombuffer(bytearray(data), dtype=np.dtype(node["dtype"])).reshape(node["shape"])


def _generator_state(value: Any) -> dict[str, Any] | None:
    if isinstance(value, th.Generator):
        return {"torch": value.get_state()}
    if isinstance(value, np.random.Generator):
        return {"numpy": value.bit_generator.state}
    if isinstance(value, np.random.RandomState):
        return {"legacy": value.get_state(legacy=False)}
    if isinstance(value, random.Random):
        return {"python": value.getstate()}
    return None


def _set_generator(state: dict[str, Any], old: Any, path: str) -> Any:
    if isinstance(old, th.Generator) and "torch" in state:
        old.set_state(state["torch"])
    elif isinstance(old, np.random.Generator) and "numpy" in state:
        old.bit_generator.state = state["numpy"]
    elif isinstance(old, np.random.RandomState) and "legacy" in state:
        old.set_state(state["legacy"])
    elif isinstance(old, random.Random) and "python" in state:
        old.setstate(state["python"])
    else:
        raise StateError(_built_late(path))
    return old


def _parts(space: spaces.Space) -> list[spaces.Space] | None:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple) else None


def _accumulators(logger: Logger) -> list[dict[str, Any]]:
    """Values that a logger averages until it writes them."""
    return [logger.name_to_value, logger.name_to_count, logger.name_to_excluded]


def _has_skipped(nodes: Iterable[Any]) -> bool:
    return any(isinstance(node, dict) and "skipped" in node for node in nodes)


def _built_late(path: str) -> str:
    return (
        f"{path.lstrip('.')} was built during training, and cannot be built again from its state. Build it in the "
        "constructor, or implement build_missing, or capture_state and restore_state (see sb3_exdm.common.state)."
    )
