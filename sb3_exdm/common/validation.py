"""Checks of arguments: what was given, what is allowed, what to do."""

import difflib
import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def check_integers(**settings: tuple[int, int]) -> None:
    """
    Refuse settings that are not integers, or too small.

    :param settings: value and smallest allowed value, by name
    :raises ValueError: naming the first setting that is not an integer or is too small
    """
    for name, (value, smallest) in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}.")


def check_finite(batch: Any, what: str, row: str = "row") -> None:
    """
    Refuse NaN, infinity and numbers beyond float32 where they come in, before they spread to everything that is learned.

    :param batch: array, or a mapping of arrays
    :param what: how the error message calls an element
    :param row: how it calls an index of the first axis
    :raises ValueError: naming the first bad entry
    """
    if isinstance(batch, dict):
        for key, part in batch.items():
            check_finite(part, f"{what}[{key!r}]", row)
        return
    array = np.asarray(batch)
    place = _first_not_finite(array)
    if place is not None:
        index, *entry = place
        raise ValueError(
            f"The {what} holds {array[place]} ({row} {index}, entry {entry}), not a finite float32. Nothing can be learned "
            "from it: check the environment, or clip its output with gymnasium.wrappers.TransformObservation."
        )


def check_rewards(rewards: np.ndarray, what: str, when: str, advice: str) -> None:
    """
    Refuse rewards that are NaN, infinite or beyond float32.

    :param rewards: one reward for each environment, ``(n_envs,)``
    :param what: kind of reward, for the error message
    :param when: when it came, for the error message
    :param advice: what to do, for the error message
    :raises ValueError: naming the first environment with such a reward, and the reward
    """
    place = _first_not_finite(rewards)
    if place is not None:
        raise ValueError(f"The {what} of environment {place[0]} is {rewards[place]} {when}. {advice}")


def _first_not_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first entry that is no finite float32; None if there is none, or for other types than floats."""
    if array.dtype.kind != "f":
        return None
    # The sum is finite only if every entry is: one pass instead of two. It may overflow, so look closer before refusing.
    with np.errstate(over="ignore", invalid="ignore"):
        if abs(array.sum()) <= LARGEST_FLOAT32 and (array.itemsize <= 4 or np.abs(array).max(initial=0.0) <= LARGEST_FLOAT32):
            return None
        bad = ~(np.abs(array.astype(np.float64, copy=False)) <= LARGEST_FLOAT32)
    return tuple(np.argwhere(bad)[0].tolist()) if bad.any() else None


def check_choice(kind: str, name: str, known: Collection[str]) -> None:
    """
    Refuse a name that is not among the known ones.

    :param kind: noun for the error message, e.g. ``"reward"``
    :param name: given name
    :param known: allowed names
    :raises ValueError: for an unknown name, with the nearest known one
    """
    if name not in known:
        raise ValueError(f"Unknown {kind} {name!r}{did_you_mean(str(name), known)}; choose one of {', '.join(known)}.")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """
    Suggest the nearest known name.

    :param name: misspelled name
    :param known: allowed names
    :return: ``" (did you mean 'x'?)"``, or an empty string if nothing is near
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_kwargs(function: Callable[..., Any], kwargs: Mapping[str, Any], name: str, *, ignore: Collection[str] = ()) -> None:
    """
    Check keyword arguments against a signature, before the function is called.

    :param function: function or class that will get the arguments; a class with ``**kwargs`` is checked against the
        constructors of its base classes too
    :param kwargs: keyword arguments
    :param name: name of the mapping in error messages, e.g. ``"algo_kwargs"``
    :param ignore: arguments that the caller sets itself and that are refused here
    :raises ValueError: for an unknown argument, with the nearest known one, or a value of the wrong type
    """
    parameters, is_open = _parameters(function)
    known = {key: hint for key, hint in parameters.items() if key not in ignore}
    owner = getattr(function, "__name__", str(function))
    for key, value in kwargs.items():
        if key not in known:
            if is_open and key not in ignore:
                continue
            raise ValueError(f"{name} has no {key!r}{did_you_mean(key, known)}; {owner} takes {', '.join(known)}.")
        if not is_instance(value, known[key]):
            raise ValueError(f"{name}[{key!r}] must be {describe_type(known[key])}, got {value!r}.")


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Type hints of all keyword parameters, and whether any other is accepted too."""
    found: dict[str, Any] = {}
    constructors = [base.__init__ for base in inspect.getmro(function)] if inspect.isclass(function) else [function]  # type: ignore[misc]
    for constructor in constructors:
        try:
            signature = inspect.signature(constructor)
        except (TypeError, ValueError):
            return found, True
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        for key, parameter in signature.parameters.items():
            if key != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(key, _resolve(parameter.annotation, constructor))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return found, False
    return found, True


def _resolve(annotation: Any, function: Callable[..., Any]) -> Any:
    """A type hint, which may be written as a string; Any where a name exists only for type checkers."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, vars(inspect.getmodule(function)))
    except Exception:
        return Any


def is_instance(value: Any, hint: Any) -> bool:
    """
    Compare a value with a type hint. Hints that cannot be checked at run time accept everything.

    :param value: any value
    :param hint: type hint; an ``int`` is accepted where a ``float`` is asked for, a list where a tuple is
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(is_instance(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if hasattr(hint, "__metadata__"):  # Annotated
        return is_instance(value, arguments[0])
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    if hint is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if hint is Path:
        return isinstance(value, (str, Path))
    if origin in (list, tuple) or (inspect.isclass(origin) and issubclass(origin, Collection) and origin not in (dict,)):
        if isinstance(value, (str, bytes, dict)) or not isinstance(value, (list, tuple, range, np.ndarray, set, frozenset)):
            return isinstance(value, dict) and inspect.isclass(origin) and issubclass(origin, Mapping)
        items = [option for option in arguments if option is not Ellipsis]
        return len(items) != 1 or all(is_instance(item, items[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if origin is type or hint is type:
        return isinstance(value, type)
    if inspect.isclass(hint) and hint in (dict, list, tuple):
        return isinstance(value, hint)
    return True


def describe_type(hint: Any) -> str:
    """
    Name a type hint in an error message.

    :param hint: type hint
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(option) for option in arguments))
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if hasattr(hint, "__metadata__"):
        return describe_type(arguments[0])
    if hint is type(None):
        return "None"
    if arguments:
        return re.sub(r"\b(?:\w+\.)+", "", str(hint))  # list[int] rather than list
    return getattr(hint, "__name__", None) or str(hint)
