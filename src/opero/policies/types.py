"""Field types that the policies share: choices, and things named by their import path; quantities, from their room."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from opero.errors import nearest
from opero.policies.quantities import (
    SMALL,
    SPACE,
    Count,
    CountOrAuto,
    Duration,
    DurationLike,
    Factor,
    PositiveCount,
    PositiveDuration,
    Rate,
    Ratio,
    Share,
    Size,
    any_case,
    approximate_duration,
    fits,
    format_duration,
    named_schema,
    parse_duration,
    parse_number,
    parse_rate,
    parse_size,
    said,
)

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
    "Flag",
    "FlagOrAuto",
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
    "is_false",
    "is_installed",
    "one_of",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "resolve",
]

ExceptionsLike = type[Exception] | str | Collection[type[Exception] | str]
"""What code may write for exception types; the field itself holds a tuple of classes."""


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


def one_of(choices: Any) -> BeforeValidator:
    """What refuses anything that is none of a `Literal`'s choices, naming the nearest."""
    known = get_args(choices)
    listed = ", ".join(map(repr, known))

    def check(value: object) -> object:
        if isinstance(value, str):
            if value not in known:
                hint = nearest(value, known).partition("; known")[0]
                raise ValueError(f"{value!r} is none of {listed}{hint}")
        elif isinstance(value, bool):
            raise ValueError(f"{value!r} is none of {listed}; YAML reads yes and on as true, no and off as false")
        else:
            raise ValueError(f"{said(value)} is none of {listed}")
        return value

    return BeforeValidator(check)


TRUE = ("true", "yes", "on", "y", "t", "1")
FALSE = ("false", "no", "off", "n", "f", "0")
FLAG_TEXT = rf"^{SPACE}{any_case(TRUE + FALSE)}{SPACE}$"


def is_false(value: object) -> bool:
    """Whether a flag's value, however written, is false."""
    return value is False or (isinstance(value, str) and value.strip().lower() in FALSE and fits(FLAG_TEXT, value))


def _flag(value: object) -> bool:
    """Text too, since variables hold nothing else, and YAML 1.2 reads yes and on as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and fits(FLAG_TEXT, value):
        return not is_false(value)
    raise ValueError(f"{said(value)} is neither true nor false; write one of these")


def _flag_or_auto(value: object) -> bool | str:
    if isinstance(value, bool) or fits(FLAG_TEXT, value):
        return _flag(value)
    if value == "auto":
        return "auto"
    if callable(value):
        raise ValueError(f"{value!r:.60} is a callback, which belongs to a call: f.map(items, progress=callback)")
    raise ValueError(f"{said(value)} is neither true, false nor 'auto'; write one of these")


_FLAGS: list[dict[str, Any]] = [{"type": "boolean"}, {"type": "string", "pattern": FLAG_TEXT}]
Flag = Annotated[bool, BeforeValidator(_flag), named_schema("Flag", _FLAGS)]
FlagOrAuto = Annotated[
    bool | Literal["auto"],
    BeforeValidator(_flag_or_auto),
    named_schema("FlagOrAuto", [*_FLAGS, {"const": "auto"}]),
]


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


NAME_SCHEMA = {"type": "string", "minLength": 1}
ExceptionTypes = Annotated[
    tuple[type[Exception], ...],
    BeforeValidator(_exception_types),
    named_schema(
        "ExceptionTypes",
        [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA}, {"type": "null"}],
        "ConnectionError",
        ["ConnectionError", "TimeoutError", "requests.HTTPError?"],
    ),
    PlainSerializer(_exception_names, return_type=list[str], when_used="json"),
]


NAME = r"([A-Za-z_]|[^\x00-\x7f])([0-9A-Za-z_]|[^\x00-\x7f])*"
DOTTED = rf"{NAME}(\.{NAME})*"
IMPORT_TEXT = rf"^{SPACE}{DOTTED}:{DOTTED}{SPACE}$"
PARAMETER_TEXT = rf"^{SPACE}{NAME}{SPACE}$"
"""An import path with a colon, and a parameter's name, for fields where text may also be something else."""


def _function(value: object) -> object:
    if isinstance(value, str):
        value = resolve(value)
    if not callable(value):
        raise ValueError(f"{value!r} is not callable")
    return value


Function = Annotated[
    Callable[..., Any],
    BeforeValidator(_function),
    WithJsonSchema({**NAME_SCHEMA, "examples": ["package.module:function"]}),
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
    BeforeValidator(_executor),
    WithJsonSchema({**NAME_SCHEMA, "examples": ["app.pools:make"]}),
    PlainSerializer(dotted_name, return_type=str, when_used="json"),
]
"""A `concurrent.futures.Executor`, or what makes one, or where to import either from."""


PERCENT_TEXT = rf"^{SPACE}\+?([0-9]{{1,2}}(\.[0-9]{{0,20}})?|\.[0-9]{{1,20}}|100(\.0{{0,20}})?){SPACE}%{SPACE}$"
FAILURES_TEXT = rf"^{SPACE}\+?([0-9]{{1,20}}|0?\.[0-9]{{1,15}}|{SMALL}){SPACE}$"


def _most_failures(value: object) -> int | float:
    if isinstance(value, str):
        if fits(PERCENT_TEXT, value):
            return float(value.strip().rstrip("%")) / 100
        if fits(FAILURES_TEXT, value):
            return int(value) if value.strip().lstrip("+").isdigit() else float(value)
    elif not isinstance(value, bool):
        if isinstance(value, int) and value >= 0:
            return value
        number = parse_number(value)
        if number is not None and 0 <= number < 1:
            return number
    raise ValueError(f'{said(value)} is no number of failures: write a count (10) or a share (0.05, "5%")')


MostFailures = Annotated[
    int | float,
    BeforeValidator(_most_failures),
    named_schema(
        "MostFailures",
        [
            {"type": "integer", "minimum": 0},
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            {"type": "string", "pattern": FAILURES_TEXT},
            {"type": "string", "pattern": PERCENT_TEXT},
        ],
        10,
        0.05,
        "5%",
    ),
]

STATUS_TEXT = rf"^{SPACE}([1-5][xX][xX]|[1-5][0-9][0-9]){SPACE}$"


def _status_code(value: object) -> int | str:
    if isinstance(value, str) and fits(STATUS_TEXT, value):
        text = value.strip().lower()
        return text if text.endswith("xx") else int(text)
    number = None if isinstance(value, str) else parse_number(value)
    if number is not None and 100 <= number <= 599 and number == int(number):
        return int(number)
    raise ValueError(f'{said(value)} is no HTTP status; write 100 to 599, or a class such as "5xx"')


def _status_codes(value: object) -> tuple[int | str, ...]:
    each = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    return tuple(dict.fromkeys(_status_code(one) for one in each))


_STATUS = [{"type": "integer", "minimum": 100, "maximum": 599}, {"type": "string", "pattern": STATUS_TEXT}]
StatusCodes = Annotated[
    tuple[int | str, ...],
    BeforeValidator(_status_codes),
    named_schema("StatusCodes", [*_STATUS, {"type": "array", "items": {"anyOf": _STATUS}}], 503, [429, "5xx"]),
]
