"""What policies have in common whose state may be shared by processes and machines."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ValidationError, WithJsonSchema, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.policies.base import ShadowPolicy
from opero.policies.quantities import PositiveDuration, quoted
from opero.policies.secrets import Secret
from opero.policies.types import one_of

OnStoreError = Literal["local", "open", "closed"]


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{quoted(value)} is not the name of a shared state: use text, such as openai")
    return value.strip()


Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": r"[^ \t\r\n]"})]


class StoredPolicy(ShadowPolicy):
    """A policy whose state may be shared by all processes of all machines, in redis.

    Attributes:
        share: who shares the state: "process", the callers in one process; "redis", all processes that use the same
            server (requires that extra). Default "process".
        share_as: the name under which the state is shared. Default: the name of the profile; for a function without a
            profile, its module and name.
        url: the URL of redis, as for the cache policy. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        on_store_error: what holds while redis cannot be used: "local", each process limits its calls to the share that
            it had of all; "open", there is no limit; "closed", calls are rejected. Default "local".
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
    """

    of_share: ClassVar[tuple[str, ...]] = ("share_as", "url", "on_store_error", "store_timeout")

    share: Annotated[Literal["process", "redis"], one_of(Literal["process", "redis"])] = "process"
    share_as: Name | None = None
    url: Secret | None = None
    on_store_error: Annotated[OnStoreError, one_of(OnStoreError)] = "local"
    store_timeout: PositiveDuration = 0.25

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        # With `share: process`, which may replace what another file says, the rest keeps its values.
        fields = type(self).model_fields
        idle = [name for name in self.of_share if getattr(self, name) != fields[name].default]
        if idle and "share" not in self.model_fields_set:
            text = f"{' and '.join(idle)} would have no effect without share: redis"
            wrong = PydanticCustomError("contradiction", "{text}", {"text": text})
            # pydantic's own error would show the input, which may contain a password.
            raise ValidationError.from_exception_data(type(self).__name__, [InitErrorDetails(type=wrong, input=self)])
        return self
