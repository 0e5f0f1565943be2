"""
Files: atomic writing, JSON, trees of tensors, Gymnasium spaces.

Tensors are stored as safetensors, the structure around them as JSON in the header. Reading executes no code, and believes
nothing: a checksum finds damage, and every value is checked before something is built from it.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sb3_exdm.common.validation import n_weights, shown

FORMAT_VERSION = 2
"""Version of every file and run folder; raised when older code cannot read a newer one, or the reverse."""


MAX_ELEMENTS = 10**7
"""Most numbers in an element of a saved space, more than any image has."""
_DTYPES = {th.float64, th.float32, th.float16, th.bfloat16, th.int64, th.int32, th.int16, th.int8, th.uint8, th.bool}


class ArtifactError(ValueError):
    """A file or folder that cannot be used; the message says which, why, and what to do."""


@contextmanager
def read_from(path: str | Path) -> Iterator[None]:
    """
    Report what goes wrong while an object is built from the content of a file as a fault of the file.

    :param path: the file
    :raises ArtifactError: for any error in the block
    """
    try:
        yield
    except ArtifactError:
        raise
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}; it may be damaged, or from another version.") from error
    except Exception as error:  # the libraries that read it raise many kinds
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ArtifactError(f"{path} cannot be used ({reason}); it may be damaged, or from another version.") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """
    Write a file whole or not at all: yield a temporary path beside ``path``, and rename it when the block ends without error.
    The file is on disk before it gets its name, so that a loss of power leaves the old or the new one.

    :param path: file to write
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """
    Wait until a file, or the names in a folder, are on disk.

    :param path: file or folder
    """
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """
    Write a JSON file.

    :param path: file
    :param content: plain data; NaN is refused, because it is not valid JSON
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """
    Read a JSON file.

    :param path: file
    :raises ArtifactError: if the file is missing, is not a JSON object, or is from another version
    """
    path = Path(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise ArtifactError(f"{path} is a folder, not a file.") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); it may be damaged.") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds {type(content).__name__}, expected a JSON object.")
    check_format(content.get("format_version", FORMAT_VERSION), path)
    return content


def parse_json(text: str) -> Any:
    """
    Parse JSON from outside.

    :param text: JSON
    :raises ValueError: for anything else, NaN and infinity, or nesting that no program makes
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_format(version: Any, path: Path) -> None:
    """
    Refuse files of other versions.

    :param version: format version of a file
    :param path: the file
    :raises ArtifactError: if this version of the library does not read it
    """
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise ArtifactError(
            f"{path} was written by an older sb3-exdm (format {version}, this one reads {FORMAT_VERSION}); run it again, or "
            "install the older version."
        )
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} was written by a newer sb3-exdm (format {version}, this one reads {FORMAT_VERSION}); upgrade it."
        )


def save_tree(path: str | Path, tree: dict[str, Any], kind: str) -> None:
    """
    Save nested dicts, lists, tuples, numbers, strings, None and tensors.

    :param path: the file
    :param tree: nested data
    :param kind: kind of content, checked by :func:`load_tree`
    :raises OSError: if the file cannot be written
    """
    tensors: dict[str, th.Tensor] = {}
    structure = _flatten(tree, tensors)
    header = {"format_version": str(FORMAT_VERSION), "kind": kind, "structure": json.dumps(structure)}
    header["checksum"] = _checksum(header, tensors)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata=header)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def load_tree(path: str | Path, kind: str) -> dict[str, Any]:
    """
    Read a file of :func:`save_tree`; all tensors are on the CPU.

    :param path: the file
    :param kind: expected kind of content
    :raises ArtifactError: if the file is missing, damaged, of another kind or from another version
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist." if not path.exists() else f"{path} is not a file.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); it may be damaged.") from None
    if "structure" not in header:
        raise ArtifactError(f"{path} was not written by sb3-exdm.")
    version = header.get("format_version", "")
    check_format(int(version) if version.isdecimal() and len(version) < 10 else version, path)
    if header.get("kind") != kind:
        raise ArtifactError(f"{path} holds a {header.get('kind')}, expected a {kind}.")
    # Files of earlier versions have none.
    if "checksum" in header and header["checksum"] != _checksum(header, tensors):
        raise ArtifactError(f"{path} is damaged: its checksum differs. Use a copy, or run it again.")
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ArtifactError(f"{path} holds numbers of type {tensor.dtype}, which sb3-exdm does not write.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ArtifactError(f"{path} holds NaN or infinity (tensor {key}); the training diverged, or it is damaged.")
    try:
        tree = _unflatten(json.loads(header["structure"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__} in its header); it may be damaged.") from None
    if not isinstance(tree, dict):
        raise ArtifactError(f"{path} holds {type(tree).__name__}, expected a dict; it may be damaged.")
    return tree


def _checksum(header: Mapping[str, str], tensors: Mapping[str, th.Tensor]) -> str:
    """Checksum of the structure and of all tensors."""
    digest = hashlib.sha256(f"{header['kind']}\n{header['structure']}".encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(th.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(node: Any, tensors: dict[str, th.Tensor]) -> Any:
    """JSON structure of a tree, its tensors moved to ``tensors`` and replaced by their key."""
    if isinstance(node, th.Tensor):
        key = str(len(tensors))
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[key] = node.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(node, dict):
        # Pairs, because the keys of an optimizer's state are integers, which JSON objects cannot have.
        return {"dict": [[key, _flatten(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {type(node).__name__: [_flatten(value, tensors) for value in node]}
    if isinstance(node, np.generic):
        return node.item()
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"Cannot save {type(node).__name__}: only tensors, numbers, strings, None, lists, tuples and dicts.")


def _unflatten(node: Any, tensors: Mapping[str, th.Tensor]) -> Any:
    """Inverse of :func:`_flatten`; raises ValueError, KeyError or TypeError for anything that it does not write."""
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ValueError("a bare list")
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(value, tensors) for key, value in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"unknown kind {kind!r}")
    values = [_unflatten(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def check_weights(weights: Mapping[str, Any], net_arch: Any, path: str | Path) -> None:
    """
    Refuse networks that are larger than the weights of a file, before they are built.

    :param weights: saved state dict
    :param net_arch: widths of the hidden layers, or a mapping of such; anything else is left to the constructor
    :param path: the file
    :raises ArtifactError: if the weights cannot be those of the network
    """
    held = sum(value.numel() for value in weights.values() if isinstance(value, th.Tensor))
    parts = net_arch.values() if isinstance(net_arch, Mapping) else [net_arch]
    needed = sum(n_weights(part) for part in parts if isinstance(part, Sequence) and all(type(width) is int for width in part))
    if needed > held:
        raise ArtifactError(f"{path} describes networks of {needed:,} weights, but holds {held:,}; it may be damaged.")


def load_optimizer(optimizer: th.optim.Optimizer, state: dict[str, Any]) -> None:
    """
    Restore the state of an optimizer, whose shapes PyTorch does not compare.

    :param optimizer: optimizer
    :param state: saved state
    :raises ValueError: if the state belongs to other weights
    """
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            if isinstance(default, (int, float, tuple)) and not isinstance(group[name], type(default) | int | th.Tensor):
                raise ValueError(f"the setting {name} of an optimizer is {shown(group[name])}")
        for weight in group["params"]:
            for name, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, th.Tensor) and value.dim() and value.shape != weight.shape:
                    raise ValueError(f"{name} of an optimizer has the shape {tuple(value.shape)}, not {tuple(weight.shape)}")


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    Describe a Gymnasium space as plain data.

    :param space: Box, Discrete, MultiDiscrete, MultiBinary or Dict
    """
    if isinstance(space, spaces.Box):
        bounds = {"low": _bounds(space.low), "high": _bounds(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": space.n if isinstance(space.n, int) else list(space.n)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_json(part) for key, part in space.spaces.items()}}
    raise ValueError(f"Cannot save the space {space}: only Box, Discrete, MultiDiscrete, MultiBinary and Dict of these.")


def _bounds(bound: np.ndarray) -> Any:
    """One number if all are equal (images have thousands), and text, because JSON has no infinity."""
    values = np.unique(bound)
    return repr(values[0].item()) if len(values) == 1 else [repr(value) for value in bound.ravel().tolist()]


def space_from_json(description: Any) -> spaces.Space:
    """
    Rebuild a space.

    :param description: from :func:`space_to_json`
    :raises ArtifactError: for an unknown kind of space, and shapes and numbers that no space has
    """
    with read_from("The description of a space"):
        return _space_from_json(description)


def _space_from_json(description: dict[str, Any]) -> spaces.Space:
    kind = description["type"]
    if kind == "Box":
        return _box_from_json(description)
    if kind == "Discrete":
        return spaces.Discrete(_integers(description["n"], 1), start=_integers(description["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(_integers(description["nvec"], 1), start=_integers(description["start"]))
    if kind == "MultiBinary":
        shape = _integers(description["shape"], 1)
        _n_elements(shape if isinstance(shape, list) else [shape])
        return spaces.MultiBinary(shape)
    if kind == "Dict":
        # Pairs keep their order; a dict would be sorted, and encoded in another order than before.
        return spaces.Dict([(key, _space_from_json(part)) for key, part in description["spaces"].items()])
    raise ArtifactError(f"Unknown space {shown(kind)}.")


def _box_from_json(description: dict[str, Any]) -> spaces.Box:
    shape, dtype = tuple(_integers(list(description["shape"]), 0)), np.dtype(description["dtype"])
    if dtype.kind not in "fiub":
        raise ArtifactError(f"A Box of {dtype} is not supported.")
    n_elements = _n_elements(shape)
    bounds = []
    for end in ("low", "high"):
        bound = description[end]
        values = np.array(bound, dtype=np.float64)
        if values.shape != ((n_elements,) if isinstance(bound, list) else ()) or np.isnan(values).any():
            raise ArtifactError(f"The {end} bounds of a Box are {shown(bound)}, which do not fit the shape {shape}.")
        bounds.append(np.broadcast_to(values, (n_elements,)).reshape(shape).astype(dtype))
    low, high = bounds
    if (low > high).any():
        raise ArtifactError("The low bounds of a Box are above the high ones.")
    return spaces.Box(low, high, shape, dtype.type)


def _integers(value: Any, smallest: int | None = None) -> Any:
    """The value itself, an integer or a list of them."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, list):
            _integers(number, smallest)
        elif type(number) is not int or abs(number) > 2**62 or (smallest is not None and number < smallest):
            raise ArtifactError(f"A space has {shown(number)} where an integer is expected.")
    return value


def _n_elements(shape: Sequence[int]) -> int:
    n_elements = math.prod(shape)
    if n_elements > MAX_ELEMENTS:
        raise ArtifactError(f"A space has the shape {shown(shape)}, more than {MAX_ELEMENTS:,} numbers.")
    return n_elements
