"""Regions of POSIX shared memory that a model server on the same machine can map too.

A region is a file in ``/dev/shm`` whose name carries the process id, for people who look there. A
living owner holds an exclusive `flock` on the file, which the kernel releases however the owner
ends. So the regions of dead processes are found without trusting process ids, which repeat and mean
something else in every container that shares the folder.

This is no lock file, for which `filelock` would do: the lock must be on the region itself, by the
descriptor that maps it. `filelock` opens a file of its own, creates it where it is missing, takes
over one that exists, and may unlock it while the region is still mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
from pathlib import Path
from typing import TypeVar

import numpy as np
from atlas_core.errors import ConfigurationError
from numpy.typing import NDArray

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the place POSIX shared memory has on Linux
PREFIX = "atlasloop-"

ElementT = TypeVar("ElementT", bound=np.generic)


class SharedRegion:
    """One region: created, locked and mapped here; unlinked by `close`.

    Attributes:
        name: file in `SHARED_MEMORY`; its POSIX key is ``"/" + name``.
        size: in bytes.

    Raises:
        ConfigurationError: the shared memory of this machine or container is too small.
    """

    def __init__(self, size: int, folder: Path = SHARED_MEMORY) -> None:
        self.size = size
        self._folder = folder
        self._descriptor, self.name = _locked_file(folder)
        try:
            # Without this a full /dev/shm shows only when a page is touched: as SIGBUS, here or in
            # the model server.
            os.posix_fallocate(self._descriptor, 0, size)
            self._map = mmap.mmap(self._descriptor, size)
        except OSError as error:
            self._unlink()
            raise ConfigurationError(
                "shared memory for the model server cannot be had",
                expected=f"{size} bytes free in {folder}",
                got=error.strerror,
                remedy="enlarge it (docker --shm-size, or a memory-backed emptyDir), or use fewer "
                "windows in flight, or shared_memory=none",
            ) from None

    @property
    def key(self) -> str:
        """POSIX name, as `shm_open` takes it."""
        return f"/{self.name}"

    def view(self, dtype: type[ElementT], shape: tuple[int, ...]) -> NDArray[ElementT]:
        """The beginning of the region as an array; it must not outlive the region."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype=dtype, count=count).reshape(shape)

    def write(self, values: NDArray[np.float32]) -> None:
        """Copy `values` to the beginning of the region."""
        np.copyto(self.view(np.float32, values.shape), values)

    def read(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A copy of the bytes at the beginning."""
        return self.view(np.uint8, shape).copy()

    def close(self) -> None:
        """Unlink and unmap; the memory is free once no server maps it any more."""
        if self._descriptor < 0:
            return
        # A view that is still alive keeps the mapping; it goes with the view.
        with contextlib.suppress(BufferError):
            self._map.close()
        self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / self.name).unlink()
        os.close(self._descriptor)
        self._descriptor = -1


def sweep(folder: Path = SHARED_MEMORY) -> tuple[str, ...]:
    """Unlink regions whose owner is dead.

    Returns:
        The names of the regions.
    """
    swept = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            continue  # gone by now, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            swept.append(path.name)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(descriptor)
    return tuple(swept)


def _locked_file(folder: Path) -> tuple[int, str]:
    """Descriptor and name of a new file that is locked and still linked: a sweep may come between
    creating and locking it."""
    while True:
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        # Nobody else may read it: voxels pass through here.
        descriptor = os.open(
            folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor, name
        except BlockingIOError:
            pass  # a sweep holds it, and is about to unlink it
        os.close(descriptor)
