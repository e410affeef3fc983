"""Functions and exceptions by import path, and the modules that they may be imported from."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from opero.errors import message_of, nearest
from opero.failures.kinds import Kind
from opero.policies.lists import each_of
from opero.policies.merging import FLAG_TEXT, is_false
from opero.policies.quantities import SPACE, fits, named_schema
from opero.runtime.functions import full_name, signature_of

Condition = Kind | type[Exception] | Callable[..., Any]
"""A kind of failure, an exception class, or a function that receives the exception and returns whether it is meant."""
ConditionsLike = Condition | str | Collection[Condition | str]
"""The types that code may pass for conditions; the field holds a tuple."""
KINDS_OF_FAILURE = tuple(kind.value for kind in Kind)

_import_from: ContextVar[Sequence[str] | None] = ContextVar("import_from", default=None)


@contextmanager
def importing_from(modules: Sequence[str] | None) -> Iterator[None]:
    """Allow imports only from these modules and their submodules within the context; None: from any module."""
    token = _import_from.set(modules)
    try:
        yield
    finally:
        _import_from.reset(token)


UNRESTRICTED = ("__import__", "breakpoint", "compile", "eval", "exec", "open")
"""Builtins that run or open arbitrary things, and so defeat any restriction."""


def _check_import_allowed(name: str, module: str | None = None) -> None:
    allowed = _import_from.get()
    module = module or name.partition(":")[0]
    if allowed is not None and not any(f"{module}.".startswith(f"{each}.") for each in allowed):
        package = module.partition(".")[0]
        only = f"only {', '.join(allowed)}" if allowed else "nothing"
        raise ValueError(f"{name!r} cannot be imported: import_from allows {only}; add {package} to it")


class NotImportableError(ValueError):
    """A name leads to nothing that can be imported here."""


class MissingName(Exception):  # noqa: N818  # it stands for whatever the name means, and may be anything
    """Stands for what a name means that cannot be imported here; each has a subclass."""


_missing: ContextVar[dict[str, tuple[type[MissingName], str]] | None] = ContextVar("missing", default=None)


@contextmanager
def keeping_names() -> Iterator[Mapping[str, tuple[type[MissingName], str]]]:
    """Accept names that cannot be imported within the context, for what shows a configuration and calls nothing.

    Yields:
        Each such name, with what stands for it, and why it cannot be imported.
    """
    found: dict[str, tuple[type[MissingName], str]] = {}
    token = _missing.set(found)
    try:
        yield found
    finally:
        _missing.reset(token)


@cache
def _stand_in(name: str) -> type[MissingName]:
    return type(name, (MissingName,), {})  # the same for a name, so that two configurations compare equal


def resolve(name: str) -> Any:
    """Import an object by name: "package.module:attribute", "package.module.attribute", or a builtin.

    Raises:
        ValueError: it cannot be imported (the message suggests the nearest name), or `importing_from` forbids it.
    """
    missing = _missing.get()
    if missing is None:
        return _imported(name)
    try:
        return _imported(name)
    except NotImportableError as error:
        if name not in missing:
            missing[name] = _stand_in(name), message_of(error)
        return missing[name][0]


def _imported(name: str) -> Any:
    module_name, colon, path = name.partition(":")
    if not colon:
        module_name, _, path = name.rpartition(".")
    if not module_name and "." not in name and not colon:
        if not hasattr(builtins, path):
            raise ValueError(f"{name!r} is not a builtin{nearest(path, dir(builtins))}")
        if path in UNRESTRICTED:
            _check_import_allowed(name, "builtins")
        return getattr(builtins, path)
    _check_import_allowed(name)
    parts = module_name.split(".")
    if not all((*parts, *path.split("."))):
        raise ValueError(f'{name!r} cannot be imported: a part of the name is empty; use "package.module:name"')
    # "package.module.Class.attribute" without a colon: the module name may be shorter.
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # importing a module may exit
            if colon or end == 1 or getattr(error, "name", None) != module:
                reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {message_of(error)}"
                raise NotImportableError(f"{name!r} cannot be imported: {reason}") from error
        else:
            return _attribute(found, ".".join([*parts[end:], path]), name)
    raise AssertionError("unreachable: the last round returns or raises")


def _attribute(found: Any, path: str, name: str) -> Any:
    for part in path.split("."):
        if not hasattr(found, part):
            where = getattr(found, "__name__", None) or _kind_of(found)  # not the value, which may be secret
            raise NotImportableError(f"{name!r} cannot be imported: {where} has no {part!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
        if isinstance(found, ModuleType):  # an allowed module may have imported it
            _check_import_allowed(name, found.__name__)
    return found


def dotted_name(target: object) -> str:
    """Return the name by which `resolve` finds `target`.

    Raises:
        ValueError: it has none (a lambda, a local function, an instance), or the name refers to something else.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for part in name.split(".") if name is not None else ():
        found = getattr(found, part, None)
    if module is None or name is None or found is not target:
        raise ValueError(f"{target!r} has no import path and cannot be serialized; define it at module level")
    if module == "builtins":
        return str(name)
    return f"{module}.{name}" if "." not in name else f"{module}:{name}"


def import_path(target: object) -> str:
    """Return the name with a colon, for fields where a name without a colon has another meaning.

    Raises:
        ValueError: as `dotted_name`.
    """
    dotted_name(target)
    return f"{target.__module__}:{target.__qualname__}"  # type: ignore[attr-defined]  # dotted_name has checked it


def _kind_of(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _described(value: object, given: object) -> str:
    """Describe an invalid value for a message; a value that was imported by name may be secret."""
    if isinstance(given, str):
        return f"{given!r} ({'a class' if isinstance(value, type) else _kind_of(value)})"
    if value is None or isinstance(value, type | int | float):
        return repr(value)
    return _kind_of(value)


def _condition(value: object) -> Condition | None:
    """Return a condition from itself or its name; None for "name?" if its package is not installed."""
    given = value
    if isinstance(value, str):
        name = value.strip()
        if "," in name:
            parts = ", ".join(each.strip() for each in name.split(",") if each.strip())
            raise ValueError(f"{name!r} is not an exception class; use a list: [{parts}]")
        if name in KINDS_OF_FAILURE:
            return _kind(Kind(name))
        may_be_absent, name = name.endswith("?"), name.removesuffix("?")
        if not name:
            raise ValueError("the name of an exception is empty")
        if may_be_absent and not is_installed(name.partition(".")[0].partition(":")[0]):
            return None
        value = _named_condition(name)
    if isinstance(value, Kind):
        return _kind(value)
    if not isinstance(value, type):
        if callable(value) and value is not getattr(builtins, getattr(value, "__name__", ""), None):
            check_call(value, "the exception")
            return value
        raise ValueError(f"{_described(value, given)} is not an exception class, a kind of failure or a function")
    if not issubclass(value, BaseException):
        raise ValueError(f"{_described(value, given)} is not an exception class")
    if not issubclass(value, Exception):
        raise ValueError(f"{value.__name__} is never retried or counted; use Exception or a subclass of it")
    return value


def exception_class(value: object) -> type[Exception] | None:
    """Return an exception class from itself or its name; None for "name?" if its package is not installed.

    Raises:
        ValueError: it is none.
    """
    found = _condition(value)
    if found is None or isinstance(found, type):
        return found
    raise ValueError(f"{_described(found, value)} is not an exception class or an HTTP status")


def _kind(kind: Kind) -> Kind:
    if kind is Kind.CONTROL:
        raise ValueError(
            "'control' is not a failure (cancellation, exits, what frameworks raise to steer), and passes through"
        )
    return kind


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; a blocked one (None in `sys.modules`) cannot."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return not package or importlib.util.find_spec(package) is not None


def _named_condition(name: str) -> object:
    if "." not in name and ":" not in name and not hasattr(builtins, name):
        exceptions = [
            each for each, found in vars(builtins).items() if inspect.isclass(found) and issubclass(found, Exception)
        ]
        hint = nearest(name, [*exceptions, *KINDS_OF_FAILURE])
        raise ValueError(
            f"{name!r} is neither a builtin exception nor a kind of failure{hint}; other exceptions need their "
            "module's name"
        )
    return resolve(name)


def _conditions(value: object) -> tuple[Condition, ...]:
    if value is None:
        return ()
    each = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    if each is not value:
        one = _condition(value)
        return () if one is None else (one,)
    return tuple(dict.fromkeys(found for found in each_of(each, _condition) if found is not None))


def _names_of_conditions(conditions: tuple[Condition, ...]) -> list[str]:
    return [each.value if isinstance(each, Kind) else dotted_name(each) for each in conditions]


NAME_SCHEMA = {"type": "string", "minLength": 1}
Conditions = Annotated[
    tuple[Condition, ...],
    BeforeValidator(_conditions),
    named_schema(
        "Conditions",
        [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA}, {"type": "null"}],
        "transient",
        ["transient", "throttled", "ConnectionError", "requests.HTTPError?", "app.errors:is_busy"],
    ),
    PlainSerializer(_names_of_conditions, return_type=list[str], when_used="json"),
]
"""Which failures a policy means: kinds, exception classes, and functions that receive the exception."""

ALL_FAILURES = tuple(kind for kind in Kind if kind is not Kind.CONTROL)


def _conditions_or_flag(value: object) -> tuple[Condition, ...]:
    if isinstance(value, bool) or fits(FLAG_TEXT, value):
        return () if is_false(value) else ALL_FAILURES
    return _conditions(value)


ConditionsOrFlag = Annotated[
    tuple[Condition, ...],
    BeforeValidator(_conditions_or_flag),
    named_schema(
        "ConditionsOrFlag",
        [{"type": "boolean"}, NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA}, {"type": "null"}],
        True,
        ["permanent", "app.errors:NotFound"],
    ),
    PlainSerializer(_names_of_conditions, return_type=list[str], when_used="json"),
]
"""Conditions; true for all failures, false for none."""


NAME = r"([A-Za-z_]|[^\x00-\x7f])([0-9A-Za-z_]|[^\x00-\x7f])*"
DOTTED = rf"{NAME}(\.{NAME})*"
IMPORT_TEXT = rf"^{SPACE}{DOTTED}:{DOTTED}{SPACE}$"
PARAMETER_TEXT = rf"^{SPACE}{NAME}{SPACE}$"
"""An import path with a colon, and the name of a parameter, for fields that also accept other text."""


def check_callable(value: object, given: object) -> None:
    """Check that a value is callable.

    Args:
        value: the value.
        given: the value as it was set: itself, or its name.

    Raises:
        ValueError: it is not callable.
    """
    if not callable(value):
        raise ValueError(f"{_described(value, given)} is not callable")


def check_call(function: Callable[..., Any], *arguments: str) -> None:
    """Check that a function can be called with these arguments by position.

    Args:
        function: the function.
        arguments: what each argument is, for the message.

    Raises:
        ValueError: it cannot.
    """
    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        with_what = f"with one argument, {arguments[0]}" if arguments else "with no arguments"
        raise ValueError(f"{full_name(function)}{signature} cannot be called {with_what}") from None


def _function(given: object) -> object:
    value = resolve(given) if isinstance(given, str) else given
    check_callable(value, given)
    return value


def _called_with(*arguments: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        check_call(value, *arguments)
        return value

    return check


_FUNCTION_SCHEMA = WithJsonSchema({**NAME_SCHEMA, "examples": ["package.module:function"]})
_FUNCTION_NAME = PlainSerializer(dotted_name, return_type=str, when_used="json")
Function = Annotated[Callable[..., Any], BeforeValidator(_function), _FUNCTION_SCHEMA, _FUNCTION_NAME]
FunctionOfResult = Annotated[Function, AfterValidator(_called_with("the result"))]
FunctionOfException = Annotated[Function, AfterValidator(_called_with("the exception"))]
FunctionOfNothing = Annotated[Function, AfterValidator(_called_with())]
"""Functions by what they are called with. `Function` receives the arguments of a call of the bound function."""


def _executor(given: object) -> object:
    from concurrent.futures import Executor

    value = resolve(given) if isinstance(given, str) else given
    makes_no_executor = isinstance(value, type) and not issubclass(value, Executor | MissingName)
    if not isinstance(value, Executor) and (makes_no_executor or not callable(value)):
        raise ValueError(
            f"{_described(value, given)} is neither a concurrent.futures.Executor nor a function that returns one"
        )
    if not isinstance(value, Executor):
        check_call(value)
    return value


ExecutorLike = Annotated[
    Any,
    BeforeValidator(_executor),
    WithJsonSchema({**NAME_SCHEMA, "examples": ["app.pools:make"]}),
    PlainSerializer(dotted_name, return_type=str, when_used="json"),
]
"""A `concurrent.futures.Executor`, a function that returns one, or the import path of either."""
