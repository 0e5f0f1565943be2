"""Files of rows: memories that grow while a run explores, appended to rather than written anew."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sb3_exdm.common.serialization import ArtifactError

_CHUNK_BYTES = 2**25


class RowFile:
    """
    File with a record of fixed size for every row of some arrays, in the order of time.

    :param path: file
    :param arrays: memory by name, each ``(capacity, ...)``; row ``i`` of the file is row ``i % capacity`` of each
    """

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.path = path
        self._arrays = dict(arrays)
        self._capacity = min(len(array) for array in arrays.values())
        self._dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
        self.n_rows = 0
        """Rows on disk."""

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return self._dtype.itemsize

    def append(self, n_rows: int, n_changed: int = 0) -> None:
        """
        Write the new rows; they are on disk when this returns. Rows that the memory has lost are left empty.

        :param n_rows: number of rows so far
        :param n_changed: last rows on disk that have changed since, and are written again
        """
        start = max(self.n_rows - n_changed, n_rows - self._capacity, 0)
        step = max(_CHUNK_BYTES // self.row_bytes, 1)
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.seek(start * self.row_bytes)
            for first in range(start, n_rows, step):
                indices = np.arange(first, min(first + step, n_rows)) % self._capacity
                rows = np.empty(len(indices), dtype=self._dtype)
                for name, array in self._arrays.items():
                    rows[name] = array[indices]
                file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.n_rows = n_rows

    def load(self, n_rows: int) -> None:
        """
        Fill the memory with the first rows of the file, and cut off the others, which were written after the checkpoint.

        :param n_rows: number of rows
        :raises ArtifactError: if the file is too short
        """
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < n_rows * self.row_bytes:
            raise ArtifactError(f"{self.path} holds {size // self.row_bytes} rows, expected {n_rows}; it may be damaged.")
        step = max(_CHUNK_BYTES // self.row_bytes, 1)
        if n_rows:
            with self.path.open("r+b") as file:
                start = max(n_rows - self._capacity, 0)
                file.seek(start * self.row_bytes)
                for first in range(start, n_rows, step):
                    indices = np.arange(first, min(first + step, n_rows)) % self._capacity
                    rows = np.frombuffer(file.read(len(indices) * self.row_bytes), dtype=self._dtype)
                    for name, array in self._arrays.items():
                        array[indices] = rows[name]
                file.truncate(n_rows * self.row_bytes)
        self.n_rows = n_rows
