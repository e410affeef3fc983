"""The bulkhead policy: how many calls may run at once."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from opero.policies.quantities import CountOrAdaptive, Duration, PositiveCount
from opero.policies.scope import Scope
from opero.policies.sharing import StoredLimitPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pydantic import SecretStr

    from opero.policies.quantities import DurationLike
    from opero.policies.scope import KeyedScope

FIRST_LIMIT = 4
"""What an adaptive limit is at first: few calls, as nothing is known of the service."""


class BulkheadPolicy(StoredLimitPolicy):
    """Limit the number of concurrent calls; others wait, or are rejected.

    Calls that wait are served in the order of their priorities, and for one priority in FIFO order.

    All callers share the same slots: threads, event loops, sync and async callers.

    A short form: `bulkhead: 20` means `bulkhead: {max_concurrent: 20}`, and `bulkhead: adaptive` means
    `bulkhead: {max_concurrent: adaptive}`.

    Attributes:
        max_concurrent: the maximum number of concurrent calls; or "adaptive": the number for which the service answers
            most calls a second, found by what the calls take, and followed when it changes. Required.
        min_limit: the least that an adaptive limit becomes. Default 1.
        max_limit: the most that an adaptive limit becomes. Default 200.
        initial_limit: what an adaptive limit is at first. Default 4, within these bounds.
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

    max_concurrent: CountOrAdaptive
    min_limit: PositiveCount = 1
    max_limit: PositiveCount = 200
    initial_limit: PositiveCount | None = None
    max_wait: Duration | None = 0.0
    scope: Scope = "auto"

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            max_concurrent: int | Literal["adaptive"],
            min_limit: int = 1,
            max_limit: int = 200,
            initial_limit: int | None = None,
            max_wait: DurationLike | None = 0.0,
            scope: Literal["auto", "profile", "function"] | KeyedScope | Mapping[str, Any] = "auto",
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            on_store_error: Literal["local", "open", "closed"] = "local",
            store_timeout: DurationLike = 0.25,
        ) -> None: ...

    @property
    def is_adaptive(self) -> bool:
        """Whether the limit is found by what calls take."""
        return self.max_concurrent == "adaptive"

    @property
    def first_limit(self) -> int:
        """The limit at first."""
        if not isinstance(self.max_concurrent, str):
            return self.max_concurrent
        return self.initial_limit or min(max(FIRST_LIMIT, self.min_limit), self.max_limit)

    @property
    def most_concurrent(self) -> int:
        """The most that the limit may ever be."""
        return self.max_limit if isinstance(self.max_concurrent, str) else self.max_concurrent

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if not self.is_adaptive:
            names = ("min_limit", "max_limit", "initial_limit")
            idle = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if idle:
                raise ValueError(f"{' and '.join(idle)} would have no effect without max_concurrent: adaptive")
            return self
        if self.min_limit > self.max_limit:
            raise ValueError(f"min_limit ({self.min_limit}) is greater than max_limit ({self.max_limit})")
        if self.initial_limit is not None and not self.min_limit <= self.initial_limit <= self.max_limit:
            raise ValueError(
                f"initial_limit ({self.initial_limit}) is not between min_limit ({self.min_limit}) and max_limit "
                f"({self.max_limit})"
            )
        if self.share != "process":
            raise ValueError(
                f"max_concurrent: adaptive has no effect on a limit that processes share (share: {self.share}): each "
                "finds its own by the calls that it makes; remove share, or set a number"
            )
        if self.shadow:
            raise ValueError(
                "max_concurrent: adaptive finds nothing in shadow: how many calls at once are best shows only where "
                "the limit is in force; remove shadow, or set a number"
            )
        return self
