"""The bulkhead policy: how many calls may run at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from opero.policies.quantities import Duration, PositiveCount
from opero.policies.scope import Scope
from opero.policies.sharing import StoredLimitPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pydantic import SecretStr

    from opero.policies.quantities import DurationLike
    from opero.policies.scope import KeyedScope


class BulkheadPolicy(StoredLimitPolicy):
    """Limit the number of concurrent calls; others wait in FIFO order or are rejected.

    All callers share the same slots: threads, event loops, sync and async callers.

    A short form: `bulkhead: 20` means `bulkhead: {max_concurrent: 20}`.

    Attributes:
        max_concurrent: the maximum number of concurrent calls. Required.
        max_wait: how long a call may wait for a slot before it raises `BulkheadFullError`; None: without limit.
            Default 0: no waiting.
        scope: "profile": all functions bound to one named profile share the slots; "function": each has its own;
            `{by: tenant}`, a `KeyedScope`: one for each value of an argument. Default "auto": "profile"; under an HTTP
            client `{by: host}`.
        share: whose calls share the slots: "process", those of this process; "machine", those of all processes of
            this user on this machine; "redis", those of all processes that use the same server (requires that extra).
            Default "process".
        share_as: the name of the slots that are shared. Default: the name of the profile; for a function with its
            own, its module and name.
        url: the URL of redis, as for a cache. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        on_store_error: what holds while redis cannot be used: "local", each process uses an equal part of the slots;
            "open", calls are not limited; "closed", they are rejected. Default "local".
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
    """

    short: ClassVar[str | None] = "max_concurrent"
    kind: ClassVar[str] = "bulkhead"

    max_concurrent: PositiveCount
    max_wait: Duration | None = 0.0
    scope: Scope = "auto"

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            max_concurrent: int,
            max_wait: DurationLike | None = 0.0,
            scope: Literal["auto", "profile", "function"] | KeyedScope | Mapping[str, Any] = "auto",
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            on_store_error: Literal["local", "open", "closed"] = "local",
            store_timeout: DurationLike = 0.25,
        ) -> None: ...
