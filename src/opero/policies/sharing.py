"""What policies have in common whose state may be shared by processes and machines."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.policies.base import ShadowPolicy
from opero.policies.quantities import PositiveDuration, quoted
from opero.policies.scope import check_sharing
from opero.policies.secrets import Secret
from opero.policies.types import one_of

OnStoreError = Literal["local", "open", "closed"]


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{quoted(value)} is not the name of a shared state: use text, such as openai")
    return value.strip()


Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": r"[^ \t\r\n]"})]


def _lacks_share(policy: BaseModel, names: Sequence[str], value: str) -> ValidationError | None:
    """Return an error if some fields are set that have no effect, as nothing says whether the state is shared.

    With `share: process`, which may replace what another file says, they keep their values.
    """
    fields = type(policy).model_fields
    idle = [name for name in names if name in fields and getattr(policy, name) != fields[name].default]
    if not idle or "share" in policy.model_fields_set:
        return None
    text = f"{' and '.join(idle)} would have no effect without share: {value}"
    wrong = PydanticCustomError("contradiction", "{text}", {"text": text})
    # pydantic's own error would show the input, which may contain a password.
    return ValidationError.from_exception_data(type(policy).__name__, [InitErrorDetails(type=wrong, input=policy)])


class StoredPolicy(ShadowPolicy):
    """A policy whose state may be shared by the processes of this machine, or of all machines, in redis.

    Attributes:
        share: who shares the state: "process", the callers in one process; "machine", all processes of this user on
            this machine; "redis", all processes that use the same server (requires that extra). Default "process".
        share_as: the name under which the state is shared. Default: the name of the profile; for a function without a
            profile, its module and name.
        url: the URL of redis, as for the cache policy. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
    """

    share: Annotated[Literal["process", "machine", "redis"], one_of(Literal["process", "machine", "redis"])] = "process"
    share_as: Name | None = None
    url: Secret | None = None
    store_timeout: PositiveDuration = 0.25

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        error = _lacks_share(self, ("url", "on_store_error", "store_timeout", "reserve"), "redis")
        if error := error or _lacks_share(self, ("share_as",), "machine or redis"):
            raise error
        check_sharing(self)
        return self


class StoredLimitPolicy(StoredPolicy):
    """A policy that limits calls, and whose state may be shared likewise.

    Attributes:
        on_store_error: what holds while redis cannot be used: "local", each process limits its calls to its share of
            all; "open", there is no limit; "closed", calls are rejected. Default "local".
    """

    on_store_error: Annotated[OnStoreError, one_of(OnStoreError)] = "local"
