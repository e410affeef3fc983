"""What all policies have in common: frozen, hashable, strict, short to write and short to read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
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
from opero.policies.quantities import HIDDEN, without_password
from opero.policies.types import Flag, Unset, dotted_name

if TYPE_CHECKING:
    from opero.policies.bound_types import Bound
    from opero.runtime.clock import Clock

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["BasePolicy", "StrictModel", "masked"]


def _hashable(value: Any) -> Any:
    """A hashable stand-in that is equal for equal values; what can be neither hashed nor opened counts by type."""
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
    """Whether two values are equal; where comparing gives no truth, as for arrays, whether they pickle the same."""
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # whatever a user's type raises
        with suppress(Exception):
            return pickle.dumps(one) == pickle.dumps(other)
        return False


class _Name(str):
    """A name that shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _shown(value: Any) -> Any:
    """Functions and classes by their names, as one would write them; no passwords of URLs; anything else as it is."""
    if isinstance(value, str):
        return without_password(value)
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
    """A mapping that shows its keys alone."""
    return dict.fromkeys(values, HIDDEN)


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields and names the nearest known one."""

    hidden: ClassVar[frozenset[str]] = frozenset()
    """Mappings whose values may be secret, and are shown nowhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        unknown = [name for name in data if name not in cls.model_fields] if isinstance(data, Mapping) else []
        if unknown:
            # The input of the error is the name, and not the mapping, which may hold a secret.
            raise ValidationError.from_exception_data(
                cls.__name__,
                [InitErrorDetails(type=cls._unknown(name), loc=(str(name),), input=name) for name in unknown],
            )
        return data

    @classmethod
    def _unknown(cls, name: Any) -> PydanticCustomError:
        context = {"field": repr(name), "model": cls.__name__, "key": name}
        hint = nearest(str(name), cls.model_fields)
        return PydanticCustomError("unknown_field", "unknown field {field} of {model}{hint}", {**context, "hint": hint})

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = {name for name in type(self).model_fields if isinstance(getattr(self, name), Unset)}
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if name not in unset}

    if not TYPE_CHECKING:  # a checker knows by itself that a frozen model has no fields to set

        def __setattr__(self, name: str, value: Any) -> None:
            # pydantic's own error would show the value, which may be secret.
            wrong = InitErrorDetails(type="frozen_instance", loc=(name,), input=HIDDEN)
            raise ValidationError.from_exception_data(type(self).__name__, [wrong])

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(getattr(self, name)) for name in type(self).model_fields)))

    def __eq__(self, other: object) -> bool:
        # pydantic compares which fields were set, too; a policy is a value, however it was written.
        if type(self) is not type(other):
            return NotImplemented
        return _equal(self.__dict__, other.__dict__)

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
        """The fields that were set by whoever made this policy, as plain data that validates again."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class BasePolicy(StrictModel):
    """One policy: what should happen, as an immutable value. It knows nothing of threads, clocks or state.

    Attributes:
        enabled: false switches the policy off and keeps its values. Default true.
    """

    short: ClassVar[str | None] = None
    """The field that a bare value sets: `rate_limit: 50/s` means `rate_limit: {rate: 50/s}`."""
    kind: ClassVar[str] = ""
    """The field of `Policy`, and so the YAML key, that holds this kind of policy."""

    enabled: Flag = True

    @classmethod
    def expand(cls, value: Any) -> dict[str, Any]:
        """The fields that any way to write this policy sets: a policy, a mapping, true, false, or a bare value.

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
            raise ValueError(f"a value alone does not say which field of {cls.__name__} it is; write a mapping")
        return {cls.short: value}

    @model_validator(mode="before")
    @classmethod
    def _accept_short_form(cls, data: Any) -> Any:
        return data if isinstance(data, cls) else cls.expand(data)

    def replace(self, **changes: Any) -> Self:
        """A policy like this one with some fields changed, validated anew.

        Raises:
            pydantic.ValidationError: an unknown field or a value out of range.
        """
        return type(self).model_validate(self._given() | changes)

    def apply(self, func: Callable[P, R], *, clock: Clock | None = None) -> Bound[P, R]:
        """Bind this policy, and no other, to `func`: a callable with the same signature that does what the policy says.

        Args:
            func: a function, async function, generator function, method, class method or static method.
            clock: where time and chance come from; the system's unless given (see `opero.runtime.clock`).

        Raises:
            ConfigError: the policy does not fit the function, such as a fallback argument that it lacks.
        """
        return apply({self.kind: self}, func, clock)  # type: ignore[no-any-return]
