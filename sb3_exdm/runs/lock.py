"""Lock of a run folder, so that one process writes to it."""

import json
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class FolderLocked(OSError):
    """Another process writes to the run folder; the message names it."""


class FolderLock:
    """
    Lock file with the number and the host of the process that holds it. The system releases the lock when that process ends,
    however it ends; what it leaves is taken over.

    :param path: lock file; its folder is made if it is missing
    :raises FolderLocked: if another process, or another run in this one, holds the lock
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        while not self._acquire():
            pass

    def _acquire(self) -> bool:
        """Take the lock; False if its holder has removed the file in the meantime."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            text = os.read(descriptor, 1000).decode(errors="replace")
            if fcntl is not None:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise FolderLocked(
                        f"{self.path.parent} is being written by {_describe(text)}. Wait for it to end, or choose "
                        "another folder."
                    ) from None
            if not self.path.exists() or not os.path.samestat(os.fstat(descriptor), self.path.stat()):
                os.close(descriptor)
                return False
            if text:
                warnings.warn(
                    f"{self.path.parent} was left by {_describe(text)}, which has ended; this process takes it over.",
                    UserWarning,
                    stacklevel=4,
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Remove the lock file and release the lock."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, TypeError, KeyError):  # it was killed while it wrote this
        return "another process"
