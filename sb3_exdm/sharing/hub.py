"""
Runs on the Hugging Face Hub.

A repository holds the files of a run folder that are data: safetensors, JSON, CSV, pictures, a video, arrays. Nothing else is
uploaded, and a repository with anything else is refused.
"""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.policies.diffusion_actor import POLICY
from sb3_exdm.runs.folder import CONFIG, MODEL, PROGRESS, REWARD, SUMMARY, TRANSITIONS, VIDEO, RunFolder
from sb3_exdm.sharing.card import CARD, model_card

MAX_BYTES = 2 * 2**30
"""Largest size of a run that is downloaded, in bytes; also of its transitions when they are unpacked."""

_DATA = (CONFIG, SUMMARY, PROGRESS, MODEL, REWARD, POLICY, TRANSITIONS, VIDEO)
_PICTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.png")
_NOT_DOWNLOADED = re.compile(r"README\.md|\.gitattributes|LICENSE(\.\w+)?")
"""Further files that a repository may hold."""
_HEADERS = {".png": (b"\x89PNG\r\n\x1a\n", 0), ".mp4": (b"ftyp", 4)}
"""Bytes that identify a format, and where they are."""


def push_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    transitions: bool = True,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """
    Share a finished run on the Hugging Face Hub, with a model card. What an earlier push left is replaced.

    :param run: run folder of ``exdm pretrain`` or ``exdm finetune``
    :param repo_id: repository, ``"user/name"``; made if it does not exist
    :param private: make it a private repository, if it does not exist
    :param transitions: whether to share the explored transitions, which fine-tuning can reuse
    :param token: access token with write permission; by default that of ``hf auth login`` or ``HF_TOKEN``
    :param message: message of the commit
    :return: address of the repository
    :raises ArtifactError: if the run is unfinished or damaged, or the Hub refuses it; nothing is uploaded then
    :raises ImportError: if the extra ``hub`` is not installed
    """
    hub = _import_hub()
    folder = RunFolder(run)
    _ = folder.summary  # refuses unfinished runs
    names = [name for name in _files(folder) if transitions or name != TRANSITIONS]
    for name in names:
        _check_content(folder.path / name)
    with _hub_errors(repo_id):
        api = hub.HfApi(token=token)
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
        card = model_card(folder, repo_id, names, api.endpoint)
        known = [file.rfilename for file in api.repo_info(repo_id).siblings or []]
        old = [name for name in known if _is_data(name) and name not in names]
        api.create_commit(
            repo_id,
            [
                *(hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder.path / name) for name in names),
                hub.CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode("utf-8")),
                *(hub.CommitOperationDelete(path_in_repo=name) for name in old),
            ],
            commit_message=message or f"Run of exdm {folder.config['command']} in {folder.config['env_id']}",
        )
    return url


def load_from_hub(
    repo_id: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    transitions: bool = True,
    overwrite: bool = False,
    token: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> RunFolder:
    """
    Download a run from the Hugging Face Hub.

    Only data is accepted: a repository with any other file, such as a pickle or a script, is refused, and every file is
    checked before it gets its place. Nothing of it is executed.

    :param repo_id: repository, ``"user/name"``
    :param out: run folder to write; by default ``runs/name``
    :param revision: branch, tag or commit; by default the newest commit
    :param transitions: whether to download the explored transitions, if there are any
    :param overwrite: replace the run in ``out``
    :param token: access token for a private repository
    :param max_bytes: largest size of all files together
    :return: run folder, for :func:`~sb3_exdm.evaluate`, ``finetune(pretrained=...)`` and all others
    :raises ArtifactError: if the repository does not exist, is too large, or holds what is not data; nothing is written then
    :raises FileExistsError: if ``out`` holds a run already, or files that are not of a run but have the names of its files, or
        is a file
    :raises FolderLocked: if another process writes to ``out``
    :raises ImportError: if the extra ``hub`` is not installed
    """
    hub = _import_hub()
    target = RunFolder(Path("runs") / repo_id.split("/")[-1] if out is None else out)
    target.check_free(overwrite)
    with _hub_errors(repo_id):
        api = hub.HfApi(token=token)
        info = api.repo_info(repo_id, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = [name for name in _check_names(repo_id, sizes, max_bytes) if transitions or name != TRANSITIONS]
    target.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.path.parent, prefix=".pull-") as temporary:
        for name in names:
            with _hub_errors(repo_id):
                # Of one commit, even if another is made meanwhile.
                cached = api.hf_hub_download(repo_id, name, revision=info.sha, cache_dir=Path(temporary) / "cache")
            shutil.copyfile(cached, Path(temporary) / name)
            _check_content(Path(temporary) / name, max_bytes)
        _check_run(RunFolder(temporary))
        with target.lock():
            if target.exists():
                target.remove()
            # The configuration comes last, because it makes the folder a run.
            for name in sorted(names, key=lambda name: name in (SUMMARY, CONFIG)):
                (Path(temporary) / name).replace(target.path / name)
    return target


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError('Sharing needs huggingface_hub, which is not installed: pip install "sb3-exdm[hub]".') from None
    return huggingface_hub


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turn the errors of the client, which differ between its versions, into one kind."""
    try:
        yield
    except (ArtifactError, FileExistsError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(f"The Hugging Face Hub could not be used for {repo_id!r}: {reason[0]}") from error


def _is_data(name: str) -> bool:
    return name in _DATA or _PICTURE.fullmatch(name) is not None


def _files(folder: RunFolder) -> list[str]:
    """Names of the files of a run to share."""
    found = sorted(path.name for path in folder.path.iterdir() if _is_data(path.name))
    for name in found:
        path = folder.path / name
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{path} is a link or a folder; only files are shared.")
    if MODEL not in found:
        raise ArtifactError(f"{folder.path} has no {MODEL}; there is nothing to share.")
    return found


def _check_names(repo_id: str, sizes: dict[str, int], max_bytes: int) -> list[str]:
    """Refuse a repository that holds anything but a run; return the names to download."""
    for name in sizes:
        if not _is_data(name) and not _NOT_DOWNLOADED.fullmatch(name):
            raise ArtifactError(
                f"{repo_id!r} holds {name!r}, which is not part of a run and may execute code. Nothing was downloaded."
            )
    names = sorted(filter(_is_data, sizes))
    if CONFIG not in names or MODEL not in names:
        raise ArtifactError(f"{repo_id!r} holds no run of sb3-exdm: it has no {CONFIG if CONFIG not in names else MODEL}.")
    total = sum(sizes[name] for name in names)
    if total > max_bytes:
        raise ArtifactError(f"{repo_id!r} has {total / 2**20:,.0f} MiB, but at most {max_bytes / 2**20:,.0f} are allowed.")
    return names


def _check_content(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """
    Check that a file is what its name says.

    :param path: file
    :param max_bytes: largest size, also when unpacked
    :raises ArtifactError: if it is not
    """
    if path.stat().st_size > max_bytes:
        raise ArtifactError(f"{path.name} has more than {max_bytes / 2**20:,.0f} MiB.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="np"):
                pass
        elif path.suffix == ".npz":
            _check_arrays(path, max_bytes)
        elif path.suffix in _HEADERS:
            magic, offset = _HEADERS[path.suffix]
            with path.open("rb") as file:
                if file.read(offset + len(magic))[offset:] != magic:
                    raise ValueError(f"it is no {path.suffix} file")
        else:
            path.read_text(encoding="utf-8")
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} is damaged, or is not what its name says: {error}.") from None


def _check_arrays(path: Path, max_bytes: int) -> None:
    """Refuse pickles in an archive of arrays, and one that is too large when it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > max_bytes:
            raise ValueError(f"unpacked it has more than {max_bytes / 2**20:,.0f} MiB")
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                if read(file)[2].hasobject:
                    raise ValueError(f"{entry.filename} holds objects, which would be unpickled")


def _check_run(folder: RunFolder) -> None:
    """Refuse a run that cannot be read, or whose settings would import a module."""
    _ = folder.config
    if folder.is_complete():
        _ = folder.summary
