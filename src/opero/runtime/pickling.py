"""Pickles for storage, which other programs can read later."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from typing import Any

PROTOCOL = 5


def dumps(value: Any) -> bytes:
    """Pickle a value, in the same way whatever packages have been imported."""
    return _Pickler.dumps(value) if "tblib.pickling_support" in sys.modules else pickle.dumps(value, PROTOCOL)


class _Pickler(pickle.Pickler):
    """Pickles exceptions in the standard way.

    dask registers the reducers of tblib for exceptions, and such pickles can be read only where tblib is installed.
    """

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
