"""Pickles that are kept, and read by other programs later."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from typing import Any

__all__ = ["dumps"]

PROTOCOL = 5


def dumps(value: Any) -> bytes:
    """A value's pickle, the same whatever other packages have been imported."""
    return _Pickler.dumps(value) if "tblib.pickling_support" in sys.modules else pickle.dumps(value, PROTOCOL)


class _Pickler(pickle.Pickler):
    """Pickles exceptions as they are everywhere: dask has them pickled as tblib does, which reads back only with it."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            reduce = copyreg.dispatch_table.get(type(value))
            if getattr(reduce, "__module__", None) == "tblib.pickling_support":
                return value.__reduce_ex__(PROTOCOL)
        return NotImplemented

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        file = io.BytesIO()
        cls(file, PROTOCOL).dump(value)
        return file.getvalue()
