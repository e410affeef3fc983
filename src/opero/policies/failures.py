"""The failures policy: which kind of failure an exception or a returned response is, where its shape does not say."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

from opero.failures.kinds import Kind
from opero.policies.base import BasePolicy
from opero.policies.lists import each_of
from opero.policies.names import NAME_SCHEMA, FunctionOfException, exception_class
from opero.policies.quantities import fits, named_schema
from opero.policies.types import STATUS_TEXT, Flag, dotted_name, status_code

if TYPE_CHECKING:
    FailureType = type[Exception] | int | str
    FailureTypesLike = FailureType | Collection[FailureType]


def _failure_type(value: object) -> type[Exception] | int | str | None:
    if isinstance(value, int | float) or fits(STATUS_TEXT, value):
        return status_code(value)
    return exception_class(value)


def _failure_types(value: object) -> tuple[type[Exception] | int | str, ...]:
    if value is None:
        return ()
    each = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    return tuple(dict.fromkeys(found for found in each_of(each, _failure_type) if found is not None))


def _written(types: tuple[type[Exception] | int | str, ...]) -> list[int | str]:
    return [dotted_name(each) if isinstance(each, type) else each for each in types]


_ONE: list[dict[str, Any]] = [{"type": "integer", "minimum": 100, "maximum": 599}, NAME_SCHEMA]
FailureTypes = Annotated[
    tuple[type[Exception] | int | str, ...],
    BeforeValidator(_failure_types),
    named_schema(
        "FailureTypes",
        [*_ONE, {"type": "array", "items": {"anyOf": _ONE}}, {"type": "null"}],
        410,
        ["app.errors:NotFound", 410, "5xx"],
    ),
    PlainSerializer(_written, return_type=list[int | str], when_used="json"),
]
"""Exception classes and HTTP statuses."""


class FailurePolicy(BasePolicy):
    """State the kind of failures that opero cannot know, or should see differently; see `opero.failures` for the kinds.

    Each kind takes exception classes and HTTP statuses: `{permanent: ["app.errors:NotFound", 410], transient: [404]}`.
    Of several statements that apply, the first of these decides: `classify`, a status, a class of statuses such as
    "5xx", the nearest base class. What none of them concerns keeps the kind that its shape says. They apply to causes
    and to the members of exception groups as well.

    Attributes:
        transient, throttled, denied, permanent, unknown: the exception classes and statuses of this kind; in YAML,
            names of classes (with a trailing "?" one whose package may be missing).
        control: exception classes that are not failures and pass through every policy.
        classify: a function that receives an exception and returns its kind, or None if it cannot say.
        responses: whether a response that a function returns (of requests, httpx, aiohttp, urllib3, botocore, or of the
            same shape) is a failure if its status is: an error status, or one that is named here. Such an attempt is
            retried, counts for the circuit breaker and is not cached; a call whose last attempt it is returns the
            response. Default true.
    """

    kind: ClassVar[str] = "failures"
    no_shadow: ClassVar[str] = "it only says of which kind failures are"

    transient: FailureTypes = ()
    throttled: FailureTypes = ()
    denied: FailureTypes = ()
    permanent: FailureTypes = ()
    control: FailureTypes = ()
    unknown: FailureTypes = ()
    classify: FunctionOfException | None = None
    responses: Flag = True

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            transient: FailureTypesLike = (),
            throttled: FailureTypesLike = (),
            denied: FailureTypesLike = (),
            permanent: FailureTypesLike = (),
            control: FailureTypesLike = (),
            unknown: FailureTypesLike = (),
            classify: Callable[[Exception], Kind | str | None] | str | None = None,
            responses: bool = True,
        ) -> None: ...

    def stated(self) -> dict[type[Exception] | int | str, Kind]:
        """Return each exception class and status that is named, with its kind."""
        return {each: kind for kind in Kind for each in getattr(self, kind.value)}

    @model_validator(mode="after")
    def _check_kinds(self) -> Self:
        statuses = [each for each in self.control if not isinstance(each, type)]
        if statuses:
            raise ValueError(f"control takes exception classes, and {statuses[0]!r} is a status; use another kind")
        of: dict[type[Exception] | int | str, str] = {}
        for kind in Kind:
            for each in getattr(self, kind.value):
                if each in of:
                    what = dotted_name(each) if isinstance(each, type) else each
                    raise ValueError(f"{what} is both {of[each]} and {kind.value}; remove it from one of them")
                of[each] = kind.value
        return self
