"""Parcels: large pickles in shared memory, which every worker process of this machine maps instead of receiving a copy.

The buffers of arrays lie beside the pickle, so that a worker's arrays are views of them. Pages are shared until a
worker writes to them: then it gets its own.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import pickle
import tempfile
from contextlib import suppress
from typing import IO, Any

from opero.dataclass import dataclass
from opero.parallel.transport.variables import Pickler
from opero.runtime.private_folder import in_private_folder

LARGE = 1 << 16
"""Bytes above which something is put into a parcel, and above which an array's buffer lies beside the pickle."""
ALIGNMENT = 64
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Parcel:
    """A large pickle, as workers are told of it.

    Attributes:
        path: the file, which exists until the parcel is closed.
        places: the first and the last byte of each part of it: the pickle, and the buffers of its arrays.
        number: which parcel of its process it is.
        process: that process.
    """

    path: str
    places: tuple[tuple[int, int], ...]
    number: int
    process: int

    def load(self) -> Any:
        """Unpickle its contents."""
        with open(self.path, "rb") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        pickled, *buffers = (memory[first:last] for first, last in self.places)
        return pickle.loads(pickled, buffers=buffers)


class Packed:
    """A value, pickled for workers of this machine: in memory, or if it is large in a file that they map.

    Args:
        value: the value.

    Attributes:
        contents: what is sent: the pickle, or the parcel.
    """

    def __init__(self, value: Any) -> None:
        self._file: IO[bytes] | None = None
        self._path: str | None = None
        self._size = 0
        self._memory = io.BytesIO()
        try:
            self.contents: bytes | Parcel = self._pack(value)
        except BaseException:
            self.close()
            raise

    def _pack(self, value: Any) -> bytes | Parcel:
        buffers: list[memoryview] = []

        def takes(buffer: pickle.PickleBuffer) -> bool:
            """Whether a buffer goes into the pickle itself."""
            raw = buffer.raw()
            if raw.nbytes < LARGE:
                return True
            buffers.append(raw)
            return False

        Pickler(self, protocol=5, buffer_callback=takes).dump(value)
        if self._file is None and not buffers:
            return self._memory.getvalue()
        places = [(0, self._size)]
        for buffer in buffers:
            self.write(bytes(-self._size % ALIGNMENT))
            first = self._size
            self.write(buffer)
            places.append((first, self._size))
        assert self._file is not None
        self._file.flush()
        path = self._path or f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return Parcel(path, tuple(places), next(_numbers), os.getpid())

    def write(self, data: Any) -> int:
        """Append data: called by the pickler."""
        size = memoryview(data).nbytes
        self._size += size
        if self._file is None and self._size > LARGE:
            self._file = self._opened()
            self._file.write(self._memory.getvalue())
        return (self._file or self._memory).write(data)

    def _opened(self) -> IO[bytes]:
        """A file in memory that ends with the last process that has it; elsewhere than on Linux, one on the disk."""
        with suppress(AttributeError, OSError):
            # Of a process that must not be inspected, such as one with other privileges, workers could not open it.
            if os.stat(f"/proc/{os.getpid()}").st_uid == os.geteuid():
                return os.fdopen(os.memfd_create("opero"), "w+b")
        handle, self._path = in_private_folder(lambda folder: tempfile.mkstemp(prefix="parcel-", dir=folder))
        return os.fdopen(handle, "w+b")

    def close(self) -> None:
        """Delete the file: workers that have mapped it keep it."""
        if self._file is not None:
            self._file.close()
            if self._path is not None:
                with suppress(OSError):  # such as on Windows, while it is mapped
                    os.unlink(self._path)

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # its map was interrupted before it had workers
            self.close()
