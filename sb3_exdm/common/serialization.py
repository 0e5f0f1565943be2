"""
Files: atomic writing, JSON, trees of tensors, Gymnasium spaces.

Tensors are stored as safetensors, the structure around them as JSON in the header. Reading executes no code.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT_VERSION = 2
"""Version of every file and run folder; raised when older code cannot read a newer one, or the reverse."""


class ArtifactError(ValueError):
    """A file or folder that cannot be used; the message says which, why, and what to do."""


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); it may be damaged.") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds {type(content).__name__}, expected a JSON object.")
    check_format(content.get("format_version", FORMAT_VERSION), path)
    return content


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
            if "structure" not in header:
                raise ArtifactError(f"{path} was not written by sb3-exdm.")
            check_format(int(header["format_version"]), path)
            if header["kind"] != kind:
                raise ArtifactError(f"{path} holds a {header['kind']}, expected a {kind}.")
            return _unflatten(json.loads(header["structure"]), file)
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); it may be damaged.") from None


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


def _unflatten(node: Any, file: Any) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return file.get_tensor(content)
    if kind == "dict":
        return {key: _unflatten(value, file) for key, value in content}
    values = [_unflatten(value, file) for value in content]
    return tuple(values) if kind == "tuple" else values


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


def space_from_json(description: dict[str, Any]) -> spaces.Space:
    """
    Rebuild a space.

    :param description: from :func:`space_to_json`
    :raises ArtifactError: for an unknown kind of space
    """
    kind = description["type"]
    if kind == "Box":
        shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
        low, high = (
            np.broadcast_to(
                np.array(description[end], dtype=np.float64).reshape(-1 if len(shape) else ()), (int(np.prod(shape)),)
            )
            .reshape(shape)
            .astype(dtype)
            for end in ("low", "high")
        )
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(description["n"], start=description["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(description["nvec"], start=description["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(description["shape"])
    if kind == "Dict":
        # Pairs keep their order; a dict would be sorted, and encoded in another order than before.
        return spaces.Dict([(key, space_from_json(part)) for key, part in description["spaces"].items()])
    raise ArtifactError(f"Unknown space {kind!r}.")
