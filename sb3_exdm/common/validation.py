"""Checks of arguments: what was given, what is allowed, what to do."""

import difflib
import inspect
import itertools
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, runtime_checkable

import numpy as np

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
MAX_INTEGER = 2**63 - 1
"""Largest integer that arrays and tensors hold."""
MAX_DEPTH = 32
"""Deepest nesting of settings."""


@runtime_checkable
class Constraint(Protocol):
    """Allowed values, as metadata of a type: ``Annotated[int, Between(1, 10)]``."""

    def check(self, name: str, value: Any) -> None:
        """
        Refuse values that are not allowed.

        :param name: how the error message calls the value
        :param value: value of the annotated type
        :raises ValueError: with the allowed values
        """


@dataclass(frozen=True)
class Between:
    """
    Constraint on numbers; anything else, such as None in an optional setting, is left to the type.

    :param low: smallest number
    :param high: largest number
    :param open_low: whether ``low`` itself is refused
    :param open_high: whether ``high`` itself is refused
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def check(self, name: str, value: Any) -> None:
        """
        Refuse numbers outside of the interval, and NaN.

        :param name: how the error message calls the number
        :param value: any value
        :raises ValueError: with the bound that is violated
        """
        if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
            return
        is_above = value > self.low if self.open_low else value >= self.low
        is_below = value < self.high if self.open_high else value <= self.high
        if is_above and is_below:
            return
        is_integer = isinstance(self.low, int) or isinstance(self.high, int)
        has_both = not is_integer and self.high - self.low <= 100.0  # the other bound is of interest, as in [0, 1]
        bounds = []
        if not is_above or has_both:
            bounds.append(f"{'above' if self.open_low else 'of at least'} {_number(self.low)}")
        if not is_below or has_both:
            bounds.append(f"{'below' if self.open_high else 'of at most'} {_number(self.high)}")
        kind = "an integer" if is_integer else "a number"
        raise ValueError(f"{name} must be {kind} {' and '.join(bounds)}, got {shown(value)}.")


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class Widths:
    """
    Constraint on the widths of hidden layers, a sequence or a mapping of sequences.

    :param smallest: fewest layers
    """

    smallest: int = 0
    widest = Between(1, 65_536)
    most = 64
    largest = 10**9
    """Most weights between the layers: 4 GB in float32."""

    def check(self, name: str, value: Any) -> None:
        """
        Refuse networks without layers, and those that no memory holds.

        :param name: how the error message calls the widths
        :param value: widths
        :raises ValueError: naming the width, or the number of layers or weights
        """
        if isinstance(value, Mapping):
            for key, part in value.items():
                self.check(f"{name}[{key!r}]", part)
            return
        if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str):
            return
        for width in value:
            check_value(f"A width in {name}", width, Annotated[int, self.widest])
        if not self.smallest <= len(value) <= self.most:
            least = "at least one hidden layer" if len(value) < self.smallest else f"at most {self.most} hidden layers"
            raise ValueError(f"{name} must have {least}, got {shown(list(value))}.")
        if n_weights(value) > self.largest:
            raise ValueError(f"{name} has {n_weights(value):,} weights, at most {self.largest:,} are allowed; use less width.")


def n_weights(net_arch: Iterable[int]) -> int:
    """
    Count the weights between hidden layers, a lower bound on those of a network.

    :param net_arch: widths of the layers
    """
    return sum(int(width_in) * int(width_out) for width_in, width_out in itertools.pairwise(net_arch))


NetArch = Annotated[Sequence[int], Widths(1)]
"""Widths of at least one hidden layer."""
BatchSize = Annotated[int, Between(1, 1_000_000)]
LearningRate = Annotated[float, Between(0.0, 1.0)]
NFrequencies = Annotated[int, Between(0, 32)]
"""Octaves of sines and cosines; float32 has 24 bits."""
Frequencies = Sequence[Annotated[float, Between(-1e6, 1e6)]]
Seed = Annotated[int, Between(0, 2**32 - 1)]
"""Seed; numpy takes 32 bits."""
Positive = Annotated[float, Between(0.0, 1e6, open_low=True)]
NonNegative = Annotated[float, Between(0.0, 1e6)]
Fraction = Annotated[float, Between(0.0, 1.0)]
Expectile = Annotated[float, Between(0.0, 1.0, open_low=True, open_high=True)]
Updates = Annotated[int, Between(0, 10**9)]
Threads = Annotated[int, Between(1, 256)]
"""Threads of a process; systems run out of them at some thousands, and PyTorch then crashes."""


def metadata(hint: Any) -> tuple[Any, ...]:
    """
    Collect the metadata of ``Annotated`` in a type, at any depth of a union.

    :param hint: type hint
    """
    found: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    for part in get_args(hint):
        found += metadata(part)
    return found


def shown(value: Any) -> str:
    """
    Show a value in an error message.

    :param value: any value
    :return: its ``repr``, cut if it is long
    """
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:180]}… ({len(text):,} characters)"


def check_integers(**settings: tuple[int, int]) -> None:
    """
    Refuse settings that are not integers, or too small.

    :param settings: value and smallest allowed value, by name
    :raises ValueError: naming the first setting that is not an integer or is too small
    """
    for name, (value, smallest) in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not smallest <= value <= MAX_INTEGER:
            bound = f"at most {MAX_INTEGER:,}" if isinstance(value, int) and value > smallest else f"at least {smallest}"
            raise ValueError(f"{name} must be an integer of {bound}, got {shown(value)}.")


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
        raise ValueError(f"Unknown {kind} {shown(name)}{did_you_mean(str(name), known)}; choose one of {', '.join(known)}.")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """
    Suggest the nearest known name.

    :param name: misspelled name
    :param known: allowed names
    :return: ``" (did you mean 'x'?)"``, or an empty string if nothing is near
    """
    near = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_kwargs(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    name: str = "",
    *,
    ignore: Collection[str] = (),
    hints: Mapping[str, Any] | None = None,
) -> None:
    """
    Check keyword arguments against a signature, before the function is called.

    :param function: function or class that will get the arguments; a class with ``**kwargs`` is checked against the
        constructors of its base classes too
    :param kwargs: keyword arguments
    :param name: name of the mapping in error messages, e.g. ``"algo_kwargs"``; empty for arguments of their own
    :param ignore: arguments that the caller sets itself and that are refused here
    :param hints: types that replace those of the signature, by name of the argument
    :raises ValueError: for an unknown argument, with the nearest known one, or a value of the wrong type or out of range
    """
    parameters, is_open = _parameters(function)
    known = {key: (hints or {}).get(key, hint) for key, hint in parameters.items() if key not in ignore}
    owner = getattr(function, "__name__", str(function))
    for key, value in kwargs.items():
        if key not in known:
            if is_open and key not in ignore:
                continue
            hint = did_you_mean(key, known)
            raise ValueError(f"{name or owner} has no {shown(key)}{hint}; {owner} takes {', '.join(known)}.")
        check_value(f"{name}[{key!r}]" if name else key, value, known[key])


def check_value(name: str, value: Any, hint: Any, *, ignore: type | tuple[type, ...] = ()) -> None:
    """
    Check a value against a type hint and the constraints in it.

    :param name: how the error message calls the value
    :param value: any value
    :param hint: type hint; ``Annotated`` may hold a :class:`Constraint` at any depth
    :param ignore: kinds of constraints that are left out
    :raises ValueError: for a wrong type, a value that is not allowed, or a number that no array holds
    """
    if not is_instance(value, hint):
        raise ValueError(f"{name} must be {describe_type(hint)}, got {shown(value)}.")
    check_plain(name, value)
    for constraint, part in _constraints(hint, value):
        if not isinstance(constraint, ignore):
            constraint.check(name, part)


def check_plain(name: str, value: Any, depth: int = 0) -> None:
    """
    Refuse NaN, infinity, integers of more than 64 bits and deep nesting, anywhere in nested settings.

    :param name: how the error message calls the value
    :param value: any value; only numbers, lists, tuples and mappings are looked into
    :param depth: levels above the value
    :raises ValueError: naming the place
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{name[:100]}… is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}.")
    if isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError(f"{name} must be a number of at most 64 bits, got {shown(value)}.")
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_plain(f"{name}[{shown(key)}]", part, depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            check_plain(f"{name}[{i}]", part, depth + 1)


def _constraints(hint: Any, value: Any) -> Iterator[tuple[Constraint, Any]]:
    """Constraints in a type hint, each with the part of the value that it is about."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        yield from ((entry, value) for entry in hint.__metadata__ if isinstance(entry, Constraint))
        yield from _constraints(arguments[0], value)
    elif origin in (Union, types.UnionType):
        for option in arguments:
            if is_instance(value, option):
                yield from _constraints(option, value)
    elif inspect.isclass(origin) and issubclass(origin, (Sequence, set)) and isinstance(value, (list, tuple)):
        items = [option for option in arguments if option is not Ellipsis]
        if len(items) == 1:
            for item in value:
                yield from _constraints(items[0], item)


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
