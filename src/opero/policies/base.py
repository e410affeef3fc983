"""The base classes of all policies: frozen, hashable, strict about field names, with a short form and a short repr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.errors import nearest
from opero.policies.door import apply
from opero.policies.merging import overlay
from opero.policies.names import dotted_name
from opero.policies.quantities import HIDDEN, without_password
from opero.policies.refusals import hint, made, refusal
from opero.policies.types import Flag, Unset

if TYPE_CHECKING:
    from opero.policies.decorated_types import Decorated
    from opero.runtime.clock import Clock

P = ParamSpec("P")
R = TypeVar("R")


def _hashable(value: Any) -> Any:
    """Return a hashable stand-in that is equal for equal values; its type, for other unhashable values."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_hashable(each) for each in value)
    try:
        hash(value)
    except TypeError:
        return type(value)
    return value


def _equal(one: Any, other: Any) -> bool:
    """Compare two values; where `==` has no truth value, as for arrays, compare their pickles."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # a user's type may raise anything
        import pickle  # few values need it

        with suppress(Exception):
            return pickle.dumps(one) == pickle.dumps(other)
        return False


class _Name(str):
    """A name whose repr has no quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _shown(value: Any) -> Any:
    """Return a value as a repr shows it: functions and classes by name, URLs without passwords."""
    if isinstance(value, str):
        return without_password(str(value))  # a kind of failure as text
    if type(value) is list:
        return [_shown(each) for each in value]
    if type(value) is dict:
        return {name: _shown(each) for name, each in value.items()}
    if isinstance(value, tuple) and value:
        each = ", ".join(repr(_shown(one)) for one in value)
        return _Name(f"({each},)" if len(value) == 1 else f"({each})")
    try:
        return _Name(dotted_name(value).replace(":", "."))
    except ValueError:
        return value


def masked(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a mapping with its values masked."""
    return dict.fromkeys(values, HIDDEN)


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as ModelType
else:

    class ModelType(type(BaseModel)):
        """Makes models whose constructors raise `ConfigError`. `model_validate`, which pydantic calls as well, raises
        pydantic's `ValidationError`."""

        def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
            # Annotations as text would be evaluated by pydantic in three times as long, for each subclass once more.
            module, texts = sys.modules.get(namespace.get("__module__", "")), namespace.get("__annotations__", {})
            for field, text in texts.items() if module is not None else ():
                if type(text) is str:
                    with suppress(NameError):  # of something local or below, which pydantic may find
                        texts[field] = eval(text, vars(module), namespace)
            return super().__new__(cls, name, bases, namespace, **options)

        def __call__(cls, /, *args: Any, **fields: Any) -> Any:
            try:
                return super().__call__(*args, **fields)
            except ValidationError as error:
                refused = refusal(error)
            raise refused  # outside of the handler: pydantic's error may show values


class StrictModel(BaseModel, metaclass=ModelType):
    """A frozen model that rejects unknown fields and suggests the nearest known one."""

    hidden: ClassVar[frozenset[str]] = frozenset()
    """Mapping fields whose values may be secret and are never shown."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=False,
        defer_build=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        unknown = [name for name in data if name not in cls.model_fields] if isinstance(data, Mapping) else []
        if unknown:
            # The input of the error is the name, not the mapping, which may contain a secret.
            raise ValidationError.from_exception_data(
                cls.__name__,
                [InitErrorDetails(type=cls._unknown(name), loc=(str(name),), input=name) for name in unknown],
            )
        return data

    @classmethod
    def _unknown(cls, name: Any) -> PydanticCustomError:
        context = {"field": repr(name), "model": cls.__name__, "key": name}
        text = cls._why_no_shadow() if name == "shadow" else cls._hint(str(name))
        return PydanticCustomError("unknown_field", "unknown field {field} of {model}{hint}", {**context, "hint": text})

    @classmethod
    def _hint(cls, name: str) -> str:
        return nearest(name, cls.model_fields)

    @classmethod
    def _why_no_shadow(cls) -> str:
        return ""

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = {name for name in type(self).model_fields if isinstance(getattr(self, name), Unset)}
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if name not in unset}

    if not TYPE_CHECKING:  # type checkers know that a frozen model cannot be assigned to

        def __setattr__(self, name: str, value: Any) -> None:
            # pydantic's own error would show the value, which may be secret.
            wrong = InitErrorDetails(type="frozen_instance", loc=(name,), input=HIDDEN)
            raise ValidationError.from_exception_data(type(self).__name__, [wrong])

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(getattr(self, name)) for name in type(self).model_fields)))

    def __eq__(self, other: object) -> bool:
        # pydantic also compares which fields were set; policies compare by value alone.
        if type(self) is not type(other):
            return NotImplemented
        mine, theirs = self.__dict__, other.__dict__
        try:
            return bool(mine == theirs)
        except Exception:  # noqa: BLE001  # as in `_equal`, which is then right for each value, but not for all at once
            return mine.keys() == theirs.keys() and all(_equal(value, theirs[name]) for name, value in mine.items())

    def __str__(self) -> str:
        return repr(self)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Only what differs from the defaults."""
        shown: list[tuple[str | None, Any]] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or not _equal(value, field.get_default(call_default_factory=True)):
                shown.append((name, masked(value) if name in self.hidden and value else _shown(value)))
        return shown

    def _given(self) -> dict[str, Any]:
        """Return the fields that were set explicitly."""
        given, values = self.model_fields_set, self.__dict__
        return {name: values[name] for name in type(self).model_fields if name in given}


class BasePolicy(StrictModel):
    """A policy as an immutable value, independent of threads, clocks and state.

    Attributes:
        enabled: false switches the policy off and keeps its values. Default true.
    """

    short: ClassVar[str | None] = None
    """The field that a bare value sets: `rate_limit: 50/s` means `rate_limit: {rate: 50/s}`."""
    kind: ClassVar[str] = ""
    """The field of `Policy`, and so the YAML key, that holds this kind of policy."""

    no_shadow: ClassVar[str] = ""
    """Why such a policy cannot be in shadow; "" if it can."""

    alternatives: ClassVar[Mapping[str, str]] = {}
    """Field → the field that takes its place: if that one is set, the default of this one is None."""

    exclusive: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Field → fields that a statement with it discards from the statements below."""

    enabled: Flag = True

    @classmethod
    def _why_no_shadow(cls) -> str:
        return f": {cls.no_shadow}" if cls.no_shadow else ""

    @classmethod
    def _hint(cls, name: str) -> str:
        return hint(name, cls.model_fields, homes_of(name))

    @classmethod
    def expand(cls, value: Any) -> dict[str, Any]:
        """Return the fields that a policy, a mapping, true, false, or a bare value (the short form) sets.

        Raises:
            ValueError: a bare value for a policy that has no short form.
        """
        if isinstance(value, cls):
            return value._given()
        if isinstance(value, bool):
            return {"enabled": value}
        if isinstance(value, Mapping):
            return dict(value)
        if cls.short is None:
            raise ValueError(f"{cls.__name__} has no short form; use a mapping")
        return {cls.short: value}

    @model_validator(mode="before")
    @classmethod
    def _accept_short_form(cls, data: Any) -> Any:
        return data if isinstance(data, cls) else cls.expand(data)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated again.

        Raises:
            ConfigError: an unknown field or a value out of range.
        """
        return made(type(self), overlay(self._given(), changes, type(self).exclusive))

    def apply(self, func: Callable[P, R], *, clock: Clock | None = None) -> Decorated[P, R]:
        """Bind this policy alone to `func` and return a callable with the same signature.

        Args:
            func: a function, async function, generator function, method, class method or static method.
            clock: the source of time and randomness (see `opero.runtime.clock`). Default: the system.

        Raises:
            ConfigError: the policy does not fit the function; for example, the fallback argument is not a parameter.
        """
        return apply({self.kind: self}, func, clock)  # type: ignore[no-any-return]


def homes_of(name: str) -> list[str]:
    """Return the policies, as `RetryPolicy`, that have a field of that name; none for one that all have."""
    if name in ShadowPolicy.model_fields:
        return []
    return sorted({each.__name__ for each in _policies(BasePolicy) if name in each.model_fields})


def _policies(base: type[BasePolicy]) -> Iterator[type[BasePolicy]]:
    for each in base.__subclasses__():
        if each.kind:
            yield each
        yield from _policies(each)


class ShadowPolicy(BasePolicy):
    """A policy that can be in shadow.

    Attributes:
        shadow: only watch: count and tell what the policy would have done, and let each call pass as if there were no
            such policy. Default false.
    """

    shadow: Flag = False
