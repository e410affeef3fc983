"""Field types that the policies share: durations, rates, and things named by their import path."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from opero.errors import nearest

__all__ = [
    "UNSET",
    "Count",
    "CountOrAuto",
    "Duration",
    "DurationLike",
    "ExceptionTypes",
    "ExceptionsLike",
    "ExecutorLike",
    "Factor",
    "Function",
    "MostFailures",
    "PositiveCount",
    "PositiveDuration",
    "Rate",
    "Ratio",
    "Scope",
    "Share",
    "Size",
    "StatusCodes",
    "Unset",
    "approximate_duration",
    "dotted_name",
    "format_duration",
    "import_path",
    "importing_from",
    "is_installed",
    "one_of",
    "parse_duration",
    "parse_rate",
    "resolve",
]

DurationLike = float | str | timedelta
"""What code may write for a duration; the field itself holds float seconds."""
ExceptionsLike = type[Exception] | str | Collection[type[Exception] | str]
"""What code may write for exception types; the field itself holds a tuple of classes."""

UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-zµ]+)\s*")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?")
SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Unset:
    """The type of `UNSET`: no value was given, where None is a value."""

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"

    def __copy__(self) -> Unset:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Unset:
        return self


UNSET = Unset()


def _number(value: object) -> float | None:
    """The number that `value` is or spells, or None. True is no number here, and neither is NaN."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float) or (isinstance(value, str) and NUMBER.fullmatch(value.strip().lower())):
        number = float(value)
    else:
        return None
    return number if math.isfinite(number) else None


def parse_duration(value: object) -> float:
    """Seconds, from a number of seconds, a `timedelta`, or text such as "250ms", "30s", "1h30m"."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    number = _number(value)
    if number is not None:
        return number
    if isinstance(value, str):
        text = value.strip().lower()
        parts = DURATION_PART.findall(text)
        if parts and not DURATION_PART.sub("", text):
            unknown = [unit for _, unit in parts if unit not in UNITS]
            if unknown:
                raise ValueError(f"{value!r} is no duration: unknown unit {unknown[0]!r}{nearest(unknown[0], UNITS)}")
            return sum(float(amount) * UNITS[unit] for amount, unit in parts)
    raise ValueError(f'{value!r} is no duration: write seconds (30, 0.25) or "250ms", "30s", "5m", "1h30m"')


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back as the very same number: 1800.0 → "30m"."""
    for unit in ("d", "h", "m", "s", "ms"):
        amount = seconds / UNITS[unit]
        if amount >= 1 and amount == int(amount) and int(amount) * UNITS[unit] == seconds:
            return f"{int(amount)}{unit}"
    return f"{seconds!r}s"


def approximate_duration(seconds: float) -> str:
    """A measured duration for a message, to three digits: "9.38s", "2m"."""
    return format_duration(round(seconds)) if seconds >= 100 else f"{seconds:.3g}s"


def parse_rate(value: object) -> float:
    """Permits a second, from a number (a second) or text such as "50/s", "1000/min", "100/30s"."""
    number = _number(value)
    if number is not None:
        return number
    if isinstance(value, str) and value.count("/") == 1:
        amount, _, period = (part.strip().lower() for part in value.partition("/"))
        permits = _number(amount)
        if permits is not None:
            seconds = UNITS.get(period) or UNITS.get(period.removesuffix("ute").removesuffix("ond"))
            if seconds is None and period in ("hour", "day"):
                seconds = UNITS[period[0]]
            if seconds is None:
                with suppress(ValueError):
                    seconds = parse_duration(period)
            if seconds is not None and seconds > 0:
                return permits / seconds
    raise ValueError(f'{value!r} is no rate: write permits a second (10, 0.5) or "50/s", "1000/min", "100/30s"')


def parse_size(value: object) -> int:
    """Bytes, from a number of bytes or text such as "512MB", "2GiB"."""
    number = _number(value)
    if number is not None and number == int(number):
        return int(number)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower()) if isinstance(value, str) else None
    if match and match[2] in SIZES:
        return int(float(match[1]) * SIZES[match[2]])
    raise ValueError(f'{value!r} is no size: write bytes or "512MB", "2GiB"')


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError(f"{value:g} is negative; the least is 0")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError(f"{value:g} is not above 0")
    return value


def _no_truth(value: object) -> object:
    """True and False are no counts, though Python calls them integers."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no number")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_not_negative)]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_positive)]
Rate = Annotated[float, BeforeValidator(parse_rate), AfterValidator(_positive)]
Factor = Annotated[float, BeforeValidator(_no_truth), Field(ge=1, allow_inf_nan=False)]
Ratio = Annotated[float, BeforeValidator(_no_truth), Field(ge=0, le=1)]
Share = Annotated[float, BeforeValidator(_no_truth), Field(gt=0, le=1)]
Size = Annotated[int, BeforeValidator(parse_size), AfterValidator(_positive)]
Count = Annotated[int, BeforeValidator(_no_truth), Field(ge=0)]
PositiveCount = Annotated[int, BeforeValidator(_no_truth), Field(ge=1)]


def _count_or_auto(value: object) -> int | str:
    number = _number(value)
    if number is not None and number >= 1 and number == int(number):
        return int(number)
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    raise ValueError(f'{value!r} will not do: write a whole number from 1 on, or "auto"')


CountOrAuto = Annotated[
    int | Literal["auto"],
    BeforeValidator(_count_or_auto, json_schema_input_type=Annotated[int, Field(ge=1)] | Literal["auto"]),
]


def one_of(choices: Any) -> BeforeValidator:
    """What refuses text that is none of a `Literal`'s choices, naming the nearest."""
    known = get_args(choices)

    def check(value: object) -> object:
        if isinstance(value, str) and value not in known:
            hint = nearest(value, known).partition("; known")[0]
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, known))}{hint}")
        return value

    return BeforeValidator(check)


Scope = Annotated[Literal["profile", "function"], one_of(Literal["profile", "function"])]


_import_from: ContextVar[Sequence[str] | None] = ContextVar("import_from", default=None)


@contextmanager
def importing_from(modules: Sequence[str] | None) -> Iterator[None]:
    """Within this, names are imported from these modules and what is below them only; None: from any."""
    token = _import_from.set(modules)
    try:
        yield
    finally:
        _import_from.reset(token)


def _check_may_import(name: str) -> None:
    allowed = _import_from.get()
    module = name.partition(":")[0]
    if allowed is not None and not any(f"{module}.".startswith(f"{each}.") for each in allowed):
        package = module.partition(".")[0]
        raise ValueError(
            f"{name!r} is not imported: import_from allows only {', '.join(allowed) or 'nothing'}; add {package} to it"
        )


def resolve(name: str) -> Any:
    """The object that `name` names: "package.module:attribute", "package.module.attribute", or a builtin.

    Raises:
        ValueError: nothing of that name can be imported; it names the nearest that can. Or `importing_from` forbids it.
    """
    module_name, colon, path = name.partition(":")
    if not colon:
        module_name, _, path = name.rpartition(".")
    if not module_name and "." not in name and not colon:
        if not hasattr(builtins, path):
            raise ValueError(f"{name!r} is no builtin{nearest(path, dir(builtins))}")
        return getattr(builtins, path)
    _check_may_import(name)
    parts = module_name.split(".")
    if not all((*parts, *path.split("."))):
        raise ValueError(f'{name!r} cannot be imported: a part of it is empty; write "package.module:name"')
    # "package.module.Class.attribute" without a colon: the module may end some dots earlier.
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except Exception as error:
            if colon or end == 1 or getattr(error, "name", None) != module:
                told = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"{name!r} cannot be imported: {told}") from error
        else:
            return _attribute(found, ".".join([*parts[end:], path]), name)
    raise AssertionError("unreachable: the last round returns or raises")


def _attribute(found: Any, path: str, name: str) -> Any:
    for part in path.split("."):
        if not hasattr(found, part):
            where = getattr(found, "__name__", repr(found))
            raise ValueError(f"{name!r} cannot be imported: {where} has no {part!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


def dotted_name(target: object) -> str:
    """The name by which `resolve` finds `target` again.

    Raises:
        ValueError: it has none (a lambda, a local function, an instance), or something else has that name.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for part in name.split(".") if name is not None else ():
        found = getattr(found, part, None)
    if module is None or name is None or found is not target:
        raise ValueError(f"{target!r} has no import path, so it cannot be written down; define it at module level")
    if module == "builtins":
        return str(name)
    return f"{module}.{name}" if "." not in name else f"{module}:{name}"


def import_path(target: object) -> str:
    """As `dotted_name`, with a colon, for fields where a name without one is something else.

    Raises:
        ValueError: it has none.
    """
    dotted_name(target)
    return f"{target.__module__}:{target.__qualname__}"  # type: ignore[attr-defined]  # just made sure of


def _exception_type(value: object) -> type[Exception] | None:
    """One exception class, from itself or its name. A trailing "?" means: nothing, where its package is absent."""
    if isinstance(value, str):
        name = value.strip()
        may_be_absent, name = name.endswith("?"), name.removesuffix("?")
        if not name:
            raise ValueError("an exception's name is empty")
        if may_be_absent and not is_installed(name.partition(".")[0].partition(":")[0]):
            return None
        value = _nearby_exception(name)
    if not isinstance(value, type) or not issubclass(value, BaseException):
        raise ValueError(f"{value!r} is no exception class")
    if not issubclass(value, Exception):
        raise ValueError(f"{value.__name__} is never retried or counted; name Exception or a subclass of it")
    return value


def is_installed(package: str) -> bool:
    """Whether a package of that name can be imported; one that is blocked (None among the modules) cannot."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return not package or importlib.util.find_spec(package) is not None


def _nearby_exception(name: str) -> object:
    if "." not in name and ":" not in name and not hasattr(builtins, name):
        known = [
            each for each, found in vars(builtins).items() if inspect.isclass(found) and issubclass(found, Exception)
        ]
        raise ValueError(f"{name!r} is no builtin exception{nearest(name, known)}; others need their module's name")
    return resolve(name)


def _exception_types(value: object) -> tuple[type[Exception], ...]:
    if value is None:
        return ()
    each = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    return tuple(dict.fromkeys(found for one in each if (found := _exception_type(one)) is not None))


def _exception_names(types: tuple[type[Exception], ...]) -> list[str]:
    return [dotted_name(each) for each in types]


ExceptionTypes = Annotated[
    tuple[type[Exception], ...],
    BeforeValidator(_exception_types, json_schema_input_type=str | list[str]),
    PlainSerializer(_exception_names, return_type=list[str], when_used="json"),
]


def _function(value: object) -> object:
    if isinstance(value, str):
        value = resolve(value)
    if not callable(value):
        raise ValueError(f"{value!r} is not callable")
    return value


Function = Annotated[
    Callable[..., Any],
    BeforeValidator(_function, json_schema_input_type=str),
    PlainSerializer(dotted_name, return_type=str, when_used="json"),
]


def _executor(value: object) -> object:
    from concurrent.futures import Executor

    if isinstance(value, str):
        value = resolve(value)
    makes_another = isinstance(value, type) and not issubclass(value, Executor)
    if not isinstance(value, Executor) and (makes_another or not callable(value)):
        raise ValueError(f"{value!r} is neither a concurrent.futures.Executor nor a function that makes one")
    return value


ExecutorLike = Annotated[
    Any,
    BeforeValidator(_executor, json_schema_input_type=str),
    PlainSerializer(dotted_name, return_type=str, when_used="json"),
]
"""A `concurrent.futures.Executor`, or what makes one, or where to import either from."""


def _most_failures(value: object) -> int | float:
    if isinstance(value, str) and value.strip().endswith("%"):
        share = _number(value.strip()[:-1])
        number: float | None = None if share is None else share / 100
        if number is not None and number <= 1:
            return float(number)
        number = None
    else:
        number = _number(value)
        if number is not None and isinstance(value, int | str) and number == int(number) and number >= 0:
            return int(number)
    if number is not None and 0 <= number < 1:
        return number
    raise ValueError(f'{value!r} is no number of failures: write a count (10) or a share (0.05, "5%")')


MostFailures = Annotated[int | float, BeforeValidator(_most_failures, json_schema_input_type=float | str)]


def _status_code(value: object) -> int | str:
    text = str(value).strip().lower()
    if re.fullmatch(r"[1-5]xx", text):
        return text
    if not isinstance(value, bool) and text.isdigit() and 100 <= int(text) <= 599:
        return int(text)
    raise ValueError(f'{value!r} is no HTTP status; write 100 to 599, or a class such as "5xx"')


def _status_codes(value: object) -> tuple[int | str, ...]:
    each = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    return tuple(dict.fromkeys(_status_code(one) for one in each))


StatusCodes = Annotated[
    tuple[int | str, ...],
    BeforeValidator(_status_codes, json_schema_input_type=int | str | list[int | str]),
]
