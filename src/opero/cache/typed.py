"""The serializer `typed`: JSON that comes back as what the return annotation says, by pydantic's TypeAdapter."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter

from opero.cache import exact_data, exact_json
from opero.cache.content import freeze
from opero.cache.exact_json import ForeignError
from opero.errors import ConfigError, message_of

PLAIN, WHOLE, ITEM = b"p", b"w", b"i"
"""What an entry begins with: no class is needed, or those of the return annotation, or of the items of that."""
OPAQUE = {"is-instance": "cls", "is-subclass": "cls", "callable": "", "generator": ""}
"""Kinds of pydantic's schemas for values that are checked only, and not made."""
ALTERNATIVES = ("lax-or-strict", "json-or-python")
DATA = ("numpy", "pandas")
exact_json.others.update(dict.fromkeys(DATA, exact_data.encoded))
exact_json.READ.update(exact_data.READ)


class UnfitError(Exception):
    """A return annotation does not say how values are made again."""


class TypedValues:
    """Writes and reads the results of one function.

    Args:
        function: the function.

    Raises:
        UnfitError: its return annotation is missing, or does not say what to expect.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.annotation = _annotation(function)
        self.adapter = None if _is_data(self.annotation) else _adapter(self.annotation)

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> TypedValues:
        """Return what writes and reads the results of a function for which this serializer was chosen.

        Raises:
            ConfigError: its return annotation does not serve.
        """
        try:
            return cls(function)
        except UnfitError as error:
            raise ConfigError(
                f"{name}: cache.serializer 'typed' cannot be used: {message_of(error)}; or choose another serializer"
            ) from error

    @functools.cached_property
    def item_adapter(self) -> TypeAdapter[Any] | None:
        """What reads an item of a list, as maps of functions of batches cache them."""
        arguments = typing.get_args(self.annotation)
        try:
            return _adapter(arguments[0]) if typing.get_origin(self.annotation) is list else None
        except UnfitError:
            return None

    def dumps(self, value: Any) -> bytes:
        """Return a value as bytes.

        Raises:
            Exception: it would not come back as it is; the message says why.
        """
        try:
            written = PLAIN + exact_json.dumps(value)
        except ForeignError as error:
            return self._by_annotation(value, error)
        if b'"DataFrame"' in written or b'"Series"' in written or b'"Index"' in written:
            self._check(value, written)
        return written

    def _by_annotation(self, value: Any, foreign: ForeignError) -> bytes:
        why: Exception = foreign
        for letter, adapter in ((WHOLE, self.adapter), (ITEM, self.item_adapter)):
            if adapter is None:
                continue
            try:
                data = adapter.dump_python(value, round_trip=True, by_alias=False, warnings="error")
                unset = [sorted(type(each).model_fields.keys() - each.model_fields_set) for each in _models(value)]
                written = letter + exact_json.dumps([data, unset if any(unset) else []], enums=True)
                self._check(value, written)
            except Exception as error:  # noqa: BLE001  # the validators of a user's models may raise anything
                why = error
                continue
            return written
        shown = getattr(self.annotation, "__name__", None) or str(self.annotation)
        raise ValueError(
            f"a {type(value).__name__} does not come back as it is by the return annotation {shown}: {message_of(why)}"
        ) from why

    def _check(self, value: Any, written: bytes) -> None:
        if freeze(self.loads(written)) != freeze(value):
            raise ValueError("what is read differs from it")

    def loads(self, data: bytes) -> Any:
        """Return the value in some bytes.

        Raises:
            Exception: they do not fit the annotation, or were not written by `dumps`.
        """
        letter, value = data[:1], exact_json.loads(data[1:])
        if letter == PLAIN:
            return value
        adapter = {WHOLE: self.adapter, ITEM: self.item_adapter}[letter]
        if adapter is None:
            raise ValueError("the return annotation has changed")
        content, unset = value
        found = adapter.validate_python(content, by_name=True, by_alias=False)
        for model, names in zip(_models(found) if unset else (), unset, strict=True):
            model.model_fields_set.difference_update(names)
        return found


def _models(value: Any) -> Iterator[BaseModel]:
    """Yield the models in a value, in an order that is the same whenever the value is."""
    inner: Iterable[Any] = ()
    if isinstance(value, BaseModel):
        yield value
        inner = (*value.__dict__.values(), *(value.__pydantic_extra__ or {}).values())
    elif isinstance(value, list | tuple):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    elif is_dataclass(value) and hasattr(value, "__dict__"):
        inner = vars(value).values()
    for each in inner:
        yield from _models(each)


def _annotation(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__annotations__") and not hasattr(function, "__func__"):
        function = type(function).__call__
    try:
        found = typing.get_type_hints(function, include_extras=True).get("return", typing.Any)
    except Exception as error:  # an annotation may be any expression
        raise UnfitError(
            f"its return annotation cannot be read ({message_of(error)}): define what it names above the function, "
            "and import it not only for type checkers"
        ) from error
    if found in (typing.Any, object) or isinstance(found, typing.TypeVar):
        raise UnfitError("it has no return annotation that says what to expect: add one")
    return found


def _is_data(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    return isinstance(kind, type) and kind.__module__.partition(".")[0] in DATA


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = _made(annotation)
    except Exception as error:  # a user's types may raise anything
        raise UnfitError(f"its return annotation cannot serve ({message_of(error).partition(chr(10))[0]})") from error
    for name in _opaque(adapter.core_schema):
        raise UnfitError(
            f"its return annotation names {name}, which cannot be made of JSON: use a pydantic model or a dataclass"
        )
    return adapter


def _made(annotation: Any) -> TypeAdapter[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return TypeAdapter(annotation)
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
    return TypeAdapter(annotation)


def _opaque(schema: Any) -> Iterator[str]:
    """Yield the names of classes in a schema whose instances are checked only."""
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from _opaque(each)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        if kind in ALTERNATIVES:
            return
        if isinstance(kind, str) and kind in OPAQUE:
            named = schema.get(OPAQUE[kind])
            if not _is_data(named) and named not in exact_json.WRITE:
                yield f"a {kind}" if named is None else getattr(named, "__qualname__", str(named))
        for name, each in schema.items():
            if name not in ("metadata", "serialization", "config"):
                yield from _opaque(each)
