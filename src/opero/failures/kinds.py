"""The kinds of failures, and what is known of one failure."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum

from opero.dataclass import dataclass


class Kind(StrEnum):
    """What a failure means for another attempt.

    Attributes:
        TRANSIENT: another attempt may succeed: connections, timeouts, most 5xx.
        THROTTLED: the service asks for fewer calls: another attempt may succeed later.
        DENIED: this credential is refused, or its quota is used up; another credential may work.
        PERMANENT: another attempt fails in the same way: most 4xx, and errors in the program.
        CONTROL: not a failure: cancellation, exits, and exceptions by which frameworks steer. It is never caught.
        UNKNOWN: nothing says which of the others it is.
    """

    TRANSIENT = "transient"
    THROTTLED = "throttled"
    DENIED = "denied"
    PERMANENT = "permanent"
    CONTROL = "control"
    UNKNOWN = "unknown"


GRAVITY = {
    Kind.UNKNOWN: 0,
    Kind.TRANSIENT: 1,
    Kind.THROTTLED: 2,
    Kind.DENIED: 3,
    Kind.PERMANENT: 4,
    Kind.CONTROL: 5,
}
"""Which kind decides if several failures are one: the one with the highest number."""

ORDINARY = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset})
"""Types that are never responses. `type(result) in ORDINARY` is the fastest way to know that a result is no failure."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of a failure.

    Attributes:
        kind: its kind.
        status: its HTTP status; None if it has none.
        reason: why it is of that kind, such as "HTTP 503", "ConnectionError", "SQLSTATE 40001" or "gRPC UNAVAILABLE".
        retry_in: seconds until another attempt may succeed, as the service says; None if it does not.
        is_bare: whether it is a builtin exception that says no more than its class: it has no status, no cause and no
            mark of a call inside.
    """

    kind: Kind
    status: int | None = None
    reason: str = ""
    retry_in: float | None = None
    is_bare: bool = field(default=False, compare=False, repr=False)


def gravest(first: Failure, second: Failure) -> Failure:
    """Return the failure that decides; of two of the same kind, the one that has to wait longer."""
    if GRAVITY[first.kind] != GRAVITY[second.kind]:
        return first if GRAVITY[first.kind] > GRAVITY[second.kind] else second
    return second if (second.retry_in or 0.0) > (first.retry_in or 0.0) else first
