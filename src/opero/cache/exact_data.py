"""numpy arrays and pandas frames as JSON: their data in numpy's file format, without pickles."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from collections.abc import Callable
from importlib import import_module
from typing import Any

from opero.cache import exact_json
from opero.cache.exact_json import ForeignError, tagged


def module(name: str) -> Any:
    """Return numpy or pandas, which are imported only where their values are used."""
    return import_module(name)


def encoded(value: Any, enums: bool) -> Any:
    """Return an array or frame as JSON.

    Raises:
        ForeignError: it is of another type, or contains one.
    """
    numpy = module("numpy")
    if type(value) is numpy.ndarray:
        return _array(value, enums)
    if isinstance(value, numpy.generic) and not value.dtype.hasobject:
        return tagged("scalar", _saved(numpy.asarray(value)))
    name = type(value).__name__
    if type(value).__module__.partition(".")[0] == "pandas":
        pandas = module("pandas")
        if value is pandas.NA or value is pandas.NaT:
            return tagged("missing", "NA" if value is pandas.NA else "NaT")
        write = WRITE.get(name)
        if write is not None and type(value) is getattr(pandas, name):
            return write(value, enums)
    raise ForeignError(f"a value of type {name}")


def _saved(array: Any) -> str:
    numpy = module("numpy")
    file = io.BytesIO()
    numpy.save(file, array, allow_pickle=False)
    return b64encode(file.getvalue()).decode()


def _loaded(content: str) -> Any:
    numpy = module("numpy")
    return numpy.load(io.BytesIO(b64decode(content, validate=True)), allow_pickle=False)


def _array(value: Any, enums: bool) -> Any:
    if not value.dtype.hasobject:
        return tagged("array", _saved(value))
    if value.dtype.names is not None:
        raise ForeignError("an array of records with objects")
    return tagged("objects", [list(value.shape), [exact_json.encoded(each, enums) for each in value.ravel().tolist()]])


def _objects(content: Any) -> Any:
    numpy = module("numpy")
    shape, items = content
    found = numpy.empty(len(items), dtype=object)
    found[:] = items if not items or not isinstance(items[0], list | tuple) else [None] * len(items)
    for at, each in enumerate(items):
        found[at] = each
    return found.reshape(shape)


def _column(value: Any, enums: bool) -> Any:
    """Write the data of a column or an index."""
    kind = value.dtype
    if type(kind).__module__.partition(".")[0] == "numpy":
        return _array(value.to_numpy(), enums)
    if hasattr(kind, "categories"):
        return tagged("categories", [_saved(value.codes), _index(kind.categories, enums), bool(kind.ordered)])
    if hasattr(kind, "tz"):
        return tagged("zoned", [_saved(value.asi8), kind.unit, exact_json.encoded(str(kind.tz), enums)])
    items = [exact_json.encoded(each, enums) for each in value.astype(object).tolist()]
    return tagged("column", [str(kind), items])


def _zoned(content: Any) -> Any:
    pandas = module("pandas")
    numbers, unit, zone = content
    naive = pandas.DatetimeIndex(_loaded(numbers).view(f"datetime64[{unit}]"))
    return naive.tz_localize("UTC").tz_convert(zone).array


def _categories(content: Any) -> Any:
    pandas = module("pandas")
    codes, categories, ordered = content
    return pandas.Categorical.from_codes(_loaded(codes), categories=categories, ordered=ordered)


def _read_column(content: Any) -> Any:
    pandas = module("pandas")
    return pandas.array(content[1], dtype=content[0])


def _index(value: Any, enums: bool) -> Any:
    pandas = module("pandas")
    name = exact_json.encoded(value.name, enums) if value.nlevels == 1 else None
    if type(value) is pandas.RangeIndex:
        return tagged("RangeIndex", [value.start, value.stop, value.step, name])
    if type(value) is pandas.MultiIndex:
        levels = [_index(level, enums) for level in value.levels]
        codes = [each.tolist() for each in value.codes]
        return tagged("MultiIndex", [levels, codes, [exact_json.encoded(each, enums) for each in value.names]])
    frequency = getattr(value, "freqstr", None) if hasattr(value, "freq") else None
    return tagged("Index", [_column(value.array, enums), name, frequency])


def _read_index(content: Any) -> Any:
    pandas = module("pandas")
    data, name, frequency = content
    found = pandas.Index(data, name=name, dtype=data.dtype)
    if frequency is not None and hasattr(found, "freq"):
        found.freq = frequency
    return found


def _multi_index(content: Any) -> Any:
    pandas = module("pandas")
    levels, codes, names = content
    return pandas.MultiIndex(levels=levels, codes=codes, names=names)


def _range_index(content: Any) -> Any:
    pandas = module("pandas")
    return pandas.RangeIndex(*content[:3], name=content[3])


def _series(value: Any, enums: bool) -> Any:
    rest = [exact_json.encoded(value.name, enums), exact_json.encoded(value.attrs, enums)]
    return tagged("Series", [_column(value.array, enums), _index(value.index, enums), *rest])


def _read_series(content: Any) -> Any:
    pandas = module("pandas")
    data, index, name, attrs = content
    found = pandas.Series(data, index=index, name=name, dtype=data.dtype)
    found.attrs = attrs
    return found


def _frame(value: Any, enums: bool) -> Any:
    columns = [_column(value.iloc[:, at].array, enums) for at in range(value.shape[1])]
    attrs = exact_json.encoded(value.attrs, enums)
    return tagged("DataFrame", [columns, _index(value.columns, enums), _index(value.index, enums), attrs])


def _read_frame(content: Any) -> Any:
    pandas = module("pandas")
    data, columns, index, attrs = content
    held = {at: pandas.Series(each, index=index, dtype=each.dtype) for at, each in enumerate(data)}
    found = pandas.DataFrame(held, index=index)
    found.columns = columns
    found.attrs = attrs
    return found


WRITE: dict[str, Callable[[Any, bool], Any]] = {
    "DataFrame": _frame,
    "Series": _series,
    **dict.fromkeys(("Index", "RangeIndex", "MultiIndex", "DatetimeIndex", "CategoricalIndex"), _index),
}
READ: dict[str, Callable[[Any], Any]] = {
    "array": _loaded,
    "objects": _objects,
    "scalar": lambda content: _loaded(content)[()],
    "missing": lambda content: getattr(module("pandas"), {"NA": "NA", "NaT": "NaT"}[content]),
    "column": _read_column,
    "zoned": _zoned,
    "categories": _categories,
    "Index": _read_index,
    "RangeIndex": _range_index,
    "MultiIndex": _multi_index,
    "Series": _read_series,
    "DataFrame": _read_frame,
}
