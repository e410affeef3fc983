"""Fallbacks: alternative values of an argument, another function, or a default result."""

from __future__ import annotations

import ast
import copy
import inspect
import types
import typing
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from typing import TYPE_CHECKING, Any, get_args, get_origin

from opero.errors import (
    AllFailedError,
    CallTimeoutError,
    ConfigError,
    RejectedError,
    ResultRejectedError,
    is_by_deadline,
    nearest,
)
from opero.events import FallbackUsed
from opero.executors.classifier import BY_SHAPE, Classifier
from opero.executors.conditions import Matcher
from opero.executors.responses import close_response
from opero.policies.types import UNSET
from opero.runtime.clock import SYSTEM
from opero.runtime.functions import short_name
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking
from opero.runtime.interruption import interruptible
from opero.runtime.log import log

if TYPE_CHECKING:
    from pydantic import SecretStr

    from opero.executors.call import Call, Layer
    from opero.executors.one_shot import OneShotArguments
    from opero.policies.fallback import FallbackPolicy
    from opero.policies.names import Condition

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

LISTS: tuple[Any, ...] = (list, tuple, Sequence, Collection, Iterable)
SEVERAL = (list, tuple)
ORDERED = (Sequence, KeysView, ValuesView)
"""Other collections that are alternatives as well, such as deques and the keys of a dictionary; texts are not."""
TEXTS = (str, bytes, bytearray, memoryview)
LIST_NAMES = ("list", "tuple", "sequence", "collection", "iterable")


def takes_list(annotation: Any) -> bool | None:
    """Return whether a parameter with this annotation takes a list; None if the annotation does not say.

    Where it may be a list or a single value, as with `str | list[str]`, it takes a single value.
    """
    if annotation in (inspect.Parameter.empty, Any, object):
        return None
    if isinstance(annotation, str):
        return _names_list(annotation)
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _any_of([takes_list(each) for each in get_args(annotation) if each is not types.NoneType])
    if origin is typing.Annotated:
        return takes_list(get_args(annotation)[0])
    if hasattr(annotation, "__value__"):  # type Keys = list[str]
        return takes_list(annotation.__value__)
    return (origin or annotation) in LISTS


def own_collections(annotation: Any) -> tuple[type, ...]:
    """Return the classes of collections other than lists that a parameter with this annotation takes as one value."""
    origin = get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        members = get_args(annotation)[:1] if origin is typing.Annotated else get_args(annotation)
        return tuple(found for each in members for found in own_collections(each))
    if hasattr(annotation, "__value__"):
        return own_collections(annotation.__value__)
    is_one = isinstance(origin, type) and issubclass(origin, Iterable) and origin not in LISTS
    return (origin,) if is_one and not issubclass(origin, TEXTS) else ()


def takes_secret(annotation: Any) -> bool:
    """Return whether a parameter with this annotation takes secrets as objects that do not show them."""
    if isinstance(annotation, str):
        return "SecretStr" in annotation
    return hasattr(annotation, "get_secret_value") or any(takes_secret(each) for each in get_args(annotation))


def _any_of(kinds: Sequence[bool | None]) -> bool | None:
    """Return whether a union takes a list, given whether each of its members does."""
    return False if False in kinds else None if None in kinds else bool(kinds)


def _names_list(text: str) -> bool | None:
    """Return whether the text of an annotation, whose names cannot be resolved, means a list."""
    try:
        return _means_list(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return False


def _means_list(node: ast.expr) -> bool | None:
    if isinstance(node, ast.BinOp):
        return _any_of([_means_list(each) for each in (node.left, node.right) if not _is_none(each)])
    if isinstance(node, ast.Constant):
        return _names_list(node.value) if isinstance(node.value, str) else False
    if not isinstance(node, ast.Subscript):
        name = _last_name(node)
        return None if name in ("any", "object") else name in LIST_NAMES
    name, inner = _last_name(node.value), node.slice
    members = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name in ("optional", "union"):
        return _any_of([_means_list(each) for each in members if not _is_none(each)])
    return _means_list(members[0]) if name == "annotated" else name in LIST_NAMES


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _last_name(node: ast.expr) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lower()


class Alternatives:
    """Finds the values of the fallback argument in a call, and makes the arguments of the attempt with each.

    Args:
        name: the name of the argument.
        function: the function.
        on: after which failures of a value the next one is tried.
        classifier: says of which kind failures are. Default: by their shape.
        values: the values for calls that leave the argument out.

    Attributes:
        is_meant: whether the next value is tried after an exception.

    Raises:
        ConfigError: the function has no such parameter, or it is variadic, or callers cannot leave it out.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        on: Sequence[Condition] = (),
        classifier: Classifier = BY_SHAPE,
        values: Sequence[SecretStr | str] = (),
    ) -> None:
        self.name = name
        self.is_meant = Matcher.of(tuple(on), classifier)
        signature = inspect.signature(function)
        parameter = signature.parameters.get(name)
        takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
        if parameter is not None and parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"fallback.arg {name!r} is a variadic parameter of {short_name(function)}: use a single parameter"
            )
        if parameter is None and not takes_any:
            known = nearest(name, signature.parameters)
            raise ConfigError(f"{short_name(function)} has no parameter {name!r}, which fallback.arg names{known}")
        self.default: Any = UNSET
        self.position: int | None = None
        annotation: Any = inspect.Parameter.empty
        if parameter is not None:
            annotation = _annotation(function, parameter)
            if parameter.default is not parameter.empty:
                self.default = parameter.default
            if parameter.kind is not parameter.KEYWORD_ONLY:
                self.position = list(signature.parameters).index(name)
        if values and parameter is not None and self.default is UNSET:
            raise ConfigError(
                f"fallback.values are for calls that leave {name!r} out, but {short_name(function)} requires it: give "
                f'the parameter a default, such as {name}: str = ""'
            )
        self.takes_list = takes_list(annotation)
        self.as_one = (*TEXTS, *own_collections(annotation))
        if self.default is not UNSET and (reason := self._why_refused(self.default)):
            raise ConfigError(f"the default of {name!r}, which fallback.arg names, {reason}")
        keeps = takes_secret(annotation)
        self.values = [each if keeps or isinstance(each, str) else each.get_secret_value() for each in values]

    def __str__(self) -> str:
        return self.name

    def variants(self, args: Args, kwargs: Kwargs) -> list[tuple[Args, Kwargs]]:
        """Return the arguments of each attempt of a round."""
        values = self.given(args, kwargs)
        if values is None:
            return [(args, kwargs)]
        return [self.variant(values, position, args, kwargs) for position in range(len(values))]

    def given(self, args: Args, kwargs: Kwargs) -> Sequence[Any] | None:
        """Return the values in a call; None if its arguments need no change, as with None or an empty list.

        Raises:
            TypeError: the argument is a set or an iterator, and the parameter is not annotated as such.
        """
        if self.position is not None and len(args) > self.position:
            given = args[self.position]
        else:
            given = kwargs.get(self.name, self.default)
        if self.values and given is self.default:  # a generated function passes defaults like other values
            return self.values
        if isinstance(given, SEVERAL):
            return given or None
        if given is None or given is UNSET:
            return None
        if not isinstance(given, self.as_one):
            if isinstance(given, ORDERED):
                return list(given) or None
            if reason := self._why_refused(given):
                raise TypeError(f"the argument {self.name!r} {reason}")
        # A single value has no alternatives, but is wrapped if the parameter takes a list.
        return [given] if self.takes_list else None

    def _why_refused(self, given: object) -> str:
        """Return why a value can be neither alternatives nor a single value; "" if it can."""
        if isinstance(given, (*self.as_one, *ORDERED)):
            return ""
        if isinstance(given, Set):
            return f"is a {type(given).__name__}, whose values have no order to be tried in: use a list"
        if isinstance(given, Iterator):
            return (
                f"is a {type(given).__name__}, which can be read only once, but attempts follow each other: use a list"
            )
        return ""

    def variant(self, values: Sequence[Any], position: int, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Return the arguments of an attempt with the value at a position."""
        if self.takes_list is False:
            return self._with(values[position], args, kwargs)
        # The function gets the list with that value first, and the others after it in their order.
        order = [values[position], *values[:position], *values[position + 1 :]]
        return self._with(order if isinstance(values, list) else tuple(order), args, kwargs)

    def _with(self, value: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        if self.position is not None and len(args) > self.position:
            return (*args[: self.position], value, *args[self.position + 1 :]), kwargs
        return args, {**kwargs, self.name: value}


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
    except Exception:  # noqa: BLE001  # such as a name imported under TYPE_CHECKING: use the annotation's text
        return parameter.annotation
    return hints.get(parameter.name, parameter.annotation)


class FallbackExecutor:
    """Answers a call with a fallback result after everything else has failed or timed out.

    Args:
        policy: the fallback policy.
        name: the function's name, for log messages.
        classifier: says of which kind failures are.
        convert: converts a fallback result to what an attempt of a generator returns; None for other functions.
        counts_errors: whether failed attempts are counted here, as no retry layer does it.
        one_shot: warns of arguments that can be read only once. Default: there is no warning.
    """

    def __init__(
        self,
        policy: FallbackPolicy,
        name: str,
        classifier: Classifier,
        convert: Callable[[Any], Any] | None = None,
        *,
        counts_errors: bool = False,
        one_shot: OneShotArguments | None = None,
    ) -> None:
        self.policy = policy
        self.name = name
        self.convert = convert
        self.counts_errors = counts_errors
        self.one_shot = one_shot
        self.classifier = classifier
        self._is_meant = Matcher.of(policy.on, classifier)

    def covers(self, call: Call, error: Exception) -> bool:
        """Return whether the fallback answers after an exception."""
        if isinstance(error, AllFailedError):
            error = error.errors[-1]
        return isinstance(error, RejectedError | CallTimeoutError) or self._is_meant(error, call.answers)

    @interruptible
    def answer(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception) -> Any:
        """Return the fallback result, or an awaitable of it if the fallback function is async."""
        call.stats.fallbacks += 1
        call.fell_back = call.is_fallback = True
        call.is_cut_short = is_by_deadline(error)
        if self.counts_errors and not call.turned_away:
            call.stats.count_error(error, self.classifier, call)
        what = "default" if self.policy.function is None else "function"
        call.stats.emit(FallbackUsed, what=what, error=error)
        log("fallback_used", "%s: fallback used after %r", self.name, error, about=call.stats, what=what, error=error)
        if self.policy.function is not None:
            if self.one_shot is not None:
                self.one_shot.check(args, kwargs)
            return self.policy.function(*args, **kwargs)
        return copy.deepcopy(self.policy.default)

    def wrap(self, layer: Layer) -> Layer:
        def with_fallback(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                return layer(call, args, kwargs)
            except Exception as error:
                if not self.covers(call, error):
                    raise
                if isinstance(error, ResultRejectedError):
                    run_blocking(close_response(BlockingHost(SYSTEM), error))
                answer = self.answer(call, args, kwargs, error)
                return answer if self.convert is None else self.convert(answer)

        return with_fallback

    def wrap_async(self, layer: Layer) -> Layer:
        async def with_fallback(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                return await layer(call, args, kwargs)
            except Exception as error:
                if not self.covers(call, error):
                    raise
                if isinstance(error, ResultRejectedError):
                    await close_response(AsyncHost(SYSTEM), error)
                answer = self.answer(call, args, kwargs, error)
                if self.policy.function is not None and inspect.isawaitable(answer):
                    answer = await answer
                return answer if self.convert is None else await self.convert(answer)

        return with_fallback
