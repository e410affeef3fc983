"""Keys of numpy arrays and pandas frames: a digest of the data, and what says how to read it."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from hashlib import blake2b
from typing import Any

from opero.cache.content import Freezer, freeze, items_of


def freezer_of_data(kind: Any) -> Freezer | None:
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and kind is numpy.ndarray:
        return _array
    if numpy is not None and issubclass(kind, numpy.generic):
        return lambda value: (type(value), str(value.dtype), value.tobytes())
    if pandas is not None and issubclass(kind, pandas.DataFrame | pandas.Series | pandas.Index):
        return _frame
    return None


def _array(value: Any) -> Hashable:
    kind = value.dtype
    shown = kind.str if kind.names is None else repr(kind.descr)
    if kind.hasobject:
        return type(value), shown, value.shape, items_of(value.ravel().tolist())
    return type(value), shown, value.shape, blake2b(value.tobytes(), digest_size=16).hexdigest()


def _frame(value: Any) -> Hashable:
    pandas: Any = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        columns = tuple([_column(value.iloc[:, at].array) for at in range(value.shape[1])])
        return type(value), _frame(value.columns), _frame(value.index), columns, freeze(value.attrs)
    if isinstance(value, pandas.Series):
        return type(value), freeze(value.name), _frame(value.index), _column(value.array), freeze(value.attrs)
    if isinstance(value, pandas.MultiIndex):
        levels = [_column(value.get_level_values(at).array) for at in range(value.nlevels)]
        return type(value), freeze(tuple(value.names)), tuple(levels)
    return type(value), freeze(value.name), _column(value.array)


def _column(values: Any) -> Hashable:
    kind = values.dtype
    shown: Hashable = str(kind)
    if hasattr(kind, "categories"):
        shown = shown, bool(getattr(kind, "ordered", False)), _column(kind.categories.array)
    if type(kind).__module__.partition(".")[0] == "numpy":
        return shown, _array(values.to_numpy())
    return shown, items_of(values.astype(object))
