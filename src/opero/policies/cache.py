"""What to remember of a function's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.policies.base import BasePolicy
from opero.policies.types import Function, PositiveCount, PositiveDuration, import_path, one_of, parse_duration, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.policies.types import DurationLike

__all__ = ["CachePolicy"]


def _time_to_live(value: Any) -> Any:
    if value is None or callable(value):
        return value
    if isinstance(value, str) and ":" in value:
        found = resolve(value)
        if not callable(found):
            raise ValueError(f"{value!r} is not callable")
        return found
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"a time to live of {seconds:g} s is not above 0")
    return seconds


TimeToLive = Annotated[
    Any,
    BeforeValidator(_time_to_live, json_schema_input_type=float | str | None),
    PlainSerializer(lambda ttl: import_path(ttl) if callable(ttl) else ttl, when_used="json"),
]


def _secret(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:  # which would show the value
        wrong = PydanticCustomError(
            "secret", "a secret is text, and this is of type {kind}", {"kind": type(value).__name__}
        )
        hidden = InitErrorDetails(type=wrong, input="**********")
        raise ValidationError.from_exception_data("secret", [hidden]) from None


Secret = Annotated[SecretStr, WrapValidator(_secret)]


Serializer = Literal["json", "pickle", "signed_pickle"]


class CachePolicy(BasePolicy):
    """Remember results by the call's arguments, so that the same call again costs nothing.

    Short forms: `cache: 30m` means `cache: {ttl: 30m}`; `cache: true` takes the defaults; `cache: false` switches off.

    Attributes:
        ttl: how long a result is served; seconds, text such as "30m", or a function of no argument that is called at
            each store and returns either (in YAML "module:function"). Default None: until it is evicted.
        backend: "memory", "disk", "redis", or the name of any registered dogpile.cache backend. Default "memory".
        key: a function of the call's arguments that returns the key. Default: the arguments, normalised to the
            function's signature.
        namespace: the first part of the cache region's name, which is `namespace:module.qualname`. Default "opero".
        max_size: the most results that `memory` keeps; the least recently used goes first. Default 1000.
        stale_ttl: how long after `ttl` an old result may still be served, while one caller refreshes it or when the
            function fails. Default None: not at all.
        cache_errors: remember exceptions, too. Default false.
        serializer: how shared stores write values: "json", "pickle" or "signed_pickle". Default: the backend's.
        secret: the key that signs pickles.
        allow_unsigned_pickle: read unsigned pickles from a network store, whoever may have written them. Default false.
        arguments: further arguments of the dogpile.cache backend.
    """

    short: ClassVar[str | None] = "ttl"
    kind: ClassVar[str] = "cache"

    ttl: TimeToLive = None
    backend: str = "memory"
    key: Function | None = None
    namespace: str = "opero"
    max_size: PositiveCount = 1000
    stale_ttl: PositiveDuration | None = None
    cache_errors: bool = False
    serializer: Annotated[Serializer, one_of(Serializer)] | None = None
    secret: Secret | None = None
    allow_unsigned_pickle: bool = False
    arguments: Mapping[str, Any] | None = None

    if TYPE_CHECKING:  # what code may write is wider than what the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            ttl: DurationLike | Callable[[], DurationLike] | None = None,
            backend: str = "memory",
            key: Callable[..., Any] | str | None = None,
            namespace: str = "opero",
            max_size: int = 1000,
            stale_ttl: DurationLike | None = None,
            cache_errors: bool = False,
            serializer: Serializer | None = None,
            secret: SecretStr | str | None = None,
            allow_unsigned_pickle: bool = False,
            arguments: Mapping[str, Any] | None = None,
        ) -> None: ...
