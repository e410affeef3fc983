"""The priority policy: which calls go first where there is not enough for all."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from opero.policies.base import BasePolicy
from opero.policies.types import one_of
from opero.runtime.priorities import Priority


class PriorityPolicy(BasePolicy):
    """Say how important calls are. Where there is not enough for all, the important go first.

    In the queue of a bulkhead (`max_wait`), more important calls are served first, and calls of one priority in FIFO
    order. A call is overtaken only by those that come within an hour after it ("background" by "critical": within
    two), so none waits for ever. A throttle rejects the less important first. A free slot goes to any call.

    What a call calls has the same priority, in threads, tasks and worker processes too. So a policy applies only where
    the code that calls has no priority yet: neither from a policy nor from `opero.priority`. Generators have it up to
    their first item.

    A short form: `priority: background` means `priority: {level: background}`.

    Attributes:
        level: "critical", "normal" or "background". Required. Calls without any priority are "normal".
    """

    short: ClassVar[str | None] = "level"
    kind: ClassVar[str] = "priority"
    no_shadow: ClassVar[str] = "it is in the queue that calls have another order, and there is only one"

    level: Annotated[Priority, one_of(Priority)]

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(self, *, enabled: bool = True, level: Priority) -> None: ...
