"""Whose state a policy keeps: one for a profile, one for each function, or one for each value of an argument."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, model_validator

from opero.errors import message_of, nearest
from opero.policies.base import StrictModel
from opero.policies.json_text import NotJSONError, parse_json
from opero.policies.names import (
    IMPORT_TEXT,
    NAME,
    check_callable,
    import_path,
    resolve,
)
from opero.policies.quantities import SPACE, PositiveCount, fits, named_schema, quoted

OWNERS = ("auto", "profile", "function")
Owner = Literal["profile", "function"]
ORIGIN = ".host"
"""What follows the name of a parameter that holds a URL, if the state is that of its host."""
BY_TEXT = rf"^{SPACE}{NAME}(\.host)?{SPACE}$"
JSON_TEXT = rf"^{SPACE}\{{"


def _by(value: object) -> object:
    if fits(IMPORT_TEXT, value):
        assert isinstance(value, str)
        found = resolve(value.strip())
        check_callable(found, value)
        return found
    if callable(value):
        return value
    if fits(BY_TEXT, value):
        assert isinstance(value, str)
        return value.strip()
    raise ValueError(
        f'{quoted(value)} is invalid: use the name of a parameter (tenant), of one that holds a URL ("url.host"), or a '
        "function that receives the arguments (app.keys:of)"
    )


By = Annotated[
    Any,
    BeforeValidator(_by),
    named_schema(
        "By",
        [{"type": "string", "pattern": text} for text in (BY_TEXT, IMPORT_TEXT)],
        "tenant",
        "url.host",
        "app.keys:of",
    ),
    PlainSerializer(lambda by: import_path(by) if callable(by) else by, when_used="json"),
]


def _owner(value: object) -> object:
    if value in ("profile", "function"):
        return value
    hint = nearest(value, ("profile", "function")).partition("; known")[0] if isinstance(value, str) else ""
    raise ValueError(f"{quoted(value)} is not one of 'profile', 'function'{hint}")


class KeyedScope(StrictModel):
    """Keep one state for each value of an argument: `scope: {by: tenant}`.

    The states are independent: the circuit of one tenant opens, and those of the others stay closed. Equal values have
    one state. A value that is not hashable is an error of its call.

    Attributes:
        by: what a call's state is chosen by: the name of a parameter; `url.host` for the host (scheme, host and port)
            of the URL in the parameter `url`; or a sync function that receives the call's arguments, in YAML its name
            (`app.keys:of`). Under an HTTP client `host` is that of the request. None is a value like others. Required.
        of: who shares the states: "profile", all functions bound to a named profile; "function", each has its own.
            Default "profile".
        max_keys: the most values whose states are kept. Then those that have been used least recently are forgotten:
            first those of closed circuits, never those of calls under way. Default 10,000.

    Raises:
        ConfigError: a value is invalid.
    """

    by: By = ""
    of: Annotated[Owner, BeforeValidator(_owner)] = "profile"
    max_keys: PositiveCount = 10_000

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            by: str | Callable[..., Any],
            of: Literal["profile", "function"] = "profile",
            max_keys: int = 10_000,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_by(self) -> Self:
        if not self.by:
            raise ValueError("by is missing: use {by: …} with the name of a parameter, or of a function")
        return self


def _scope(value: object) -> object:
    if isinstance(value, KeyedScope):
        return value
    if fits(JSON_TEXT, value):  # an environment variable
        assert isinstance(value, str)
        try:
            value = parse_json(value)
        except NotJSONError as error:
            raise ValueError(f"{quoted(value)} is not valid JSON: {message_of(error)}") from None
    if isinstance(value, Mapping):
        return KeyedScope.model_validate(value)
    if isinstance(value, str) and value in OWNERS:
        return value
    hint = nearest(value, OWNERS).partition("; known")[0] if isinstance(value, str) else ""
    if isinstance(value, bool):
        hint = "; YAML reads yes and on as true, no and off as false"
    raise ValueError(f"{quoted(value)} is not one of 'auto', 'profile', 'function' and {{by: …}}{hint}")


def _written(scope: Any) -> Any:
    return scope.model_dump(mode="json") if isinstance(scope, KeyedScope) else scope


Scope = Annotated[
    Any,
    BeforeValidator(
        _scope,
        json_schema_input_type=Literal["auto", "profile", "function"]
        | Annotated[str, WithJsonSchema({"type": "string", "pattern": JSON_TEXT})]
        | KeyedScope,
    ),
    PlainSerializer(_written, when_used="json"),
]
"""The type of `scope`: `KeyedScope`, or one of `OWNERS`."""


def owner_of(policy: Any) -> Owner:
    """Return who shares the state of a policy: the functions of a profile share a retry budget in any case."""
    scope = getattr(policy, "scope", "profile")
    if isinstance(scope, KeyedScope):
        return scope.of
    return "function" if scope == "function" else "profile"


def scope_by(policy: Any) -> KeyedScope | None:
    """Return the scope of a policy that keeps a state for each value of an argument; else None."""
    scope = getattr(policy, "scope", None)
    return scope if isinstance(scope, KeyedScope) else None


def check_sharing(policy: Any) -> None:
    """Check that the states of a policy for values of an argument can be where it says.

    Raises:
        ValueError: they cannot.
    """
    if scope_by(policy) is not None and getattr(policy, "share", "process") == "machine":
        raise ValueError(
            "scope {by: …} and share: machine exclude each other, as each value would need a file; use share: redis, "
            "or leave share out"
        )
