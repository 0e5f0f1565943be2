"""Runs that are killed in processes of their own, resumed, and compared with runs that were never interrupted."""

import importlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

import sb3_exdm
from sb3_exdm.common.serialization import load_tree
from sb3_exdm.runs.folder import RunFolder

KINDS = {"model": "agent", "reward": "intrinsic reward", "policy": "diffusion policy"}
CLOCKS = {"seconds", "total_seconds", "steps_per_second", "peak_memory_mb"}


def patch(target: str, make: Callable[[Any], Any]) -> None:
    """
    Replace an attribute.

    :param target: ``"module:name"`` or ``"module:Class.method"``
    :param make: function from the attribute to what replaces it
    """
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, make(getattr(owner, name)))


def signal_at(target: str, call: int = 1, number: int = signal.SIGKILL) -> Callable[[], None]:
    """
    Make a process send a signal to itself when it calls a function.

    :param target: see :func:`patch`
    :param call: number of the call
    :param number: number of the signal
    """

    def arm() -> None:
        n_calls = 0

        def make(original: Any) -> Any:
            def fatal(*args: Any, **kwargs: Any) -> Any:
                nonlocal n_calls
                n_calls += 1
                if n_calls == call:
                    os.kill(os.getpid(), number)
                return original(*args, **kwargs)

            return fatal

        patch(target, make)

    return arm


def in_process(function: Callable[[], Any], arm: Callable[[], None] = lambda: None) -> int:
    """
    Call a function in a process of its own.

    :param function: function
    :param arm: called before it, in that process
    :return: exit code, negative for a signal
    """

    def work() -> None:
        warnings.simplefilter("always")
        arm()
        function()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def run(settings: dict[str, Any], out: Path, **options: Any) -> Any:
    """
    Pre-train, or fine-tune if the settings name an evaluation.

    :param settings: arguments of the recipe
    :param out: run folder
    :param options: further arguments
    """
    recipe: Any = sb3_exdm.finetune if "eval_freq" in settings else sb3_exdm.pretrain
    return recipe(**settings, out=out, device="cpu", progress_bar=False, **options)


def assert_same_run(first: Path, second: Path) -> None:
    """
    Compare all results of two runs bit by bit.

    :param first: run folder
    :param second: run folder
    """
    for name, kind in KINDS.items():
        paths = [folder / f"{name}.safetensors" for folder in (first, second)]
        assert paths[0].is_file() == paths[1].is_file(), name
        if paths[0].is_file():
            assert_same(*(load_tree(path, kind) for path in paths), name)
    one, other = RunFolder(first), RunFolder(second)
    if (first / "transitions.npz").is_file():
        assert_same(one.transitions(), other.transitions(), "transitions")
    assert_same(*({**folder.progress(), "seconds": None} for folder in (one, other)), "progress")
    assert_same(*({k: v for k, v in folder.summary.items() if k not in CLOCKS} for folder in (one, other)), "summary")
    assert {path.name for path in one.pictures()} == {path.name for path in other.pictures()}


def assert_same(first: Any, second: Any, path: str) -> None:
    """
    Compare trees of tensors, arrays and plain data bit by bit.

    :param first: tree
    :param second: tree
    :param path: name of the trees
    """
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(first, th.Tensor):
        assert th.equal(first, second), path
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second, err_msg=path)
    else:
        assert first == second or (first != first and second != second), f"{path}: {first} and {second}"
