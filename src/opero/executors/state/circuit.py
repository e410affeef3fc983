"""What a circuit breaker has seen of its service: one state, which may be looked at through several policies."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from opero.executors.state.windows import CountWindow, TimeWindow, new_window

if TYPE_CHECKING:
    from opero.policies.circuit_breaker import CircuitBreakerPolicy

__all__ = ["Circuit", "State"]

State = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]


class Circuit:
    """The state of a circuit, and what has been counted. Executors of old and new policies hold the same one.

    Every change of state begins a new period.

    Attributes:
        lock: held to change anything, and to look at more than one thing. Another one takes its place when processes
            come to share the state.
        state: that of `State`.
        period: its number.
        passing: the same while the circuit is closed, else -1: what a call looks at without the lock.
        since: when it began.
        consecutive: failures in a row.
        probes_begun, probes_passed: in a half-open circuit.
        last_error: the last trouble, in one line.
        by_rate: the newest policy judges by a rate, so every call goes into the window.
        length: of the window, as the newest policy has it.
        window: the calls that rates are taken over.
        alert: a success has something to change: there is a window to fill, a failure to forget, or a probe to count.
        news: changes of state that have not been logged yet.
    """

    def __init__(self, policy: CircuitBreakerPolicy, now: float) -> None:
        self.lock: Any = threading.Lock()
        self.state: State = "closed"
        self.period = 0
        self.passing = 0
        self.since = now
        self.consecutive = 0
        self.probes_begun = 0
        self.probes_passed = 0
        self.last_error = ""
        self.by_rate = policy.by_rate
        self.length = policy.window
        self.window: CountWindow | TimeWindow = new_window(self.length)
        self.alert = self.by_rate
        self.news: deque[str] = deque()

    # With the lock held

    def enter(self, state: State, now: float) -> None:
        """Begin a new period."""
        if state != self.state:
            self.news.append(state.replace("_", " ") + (f" after {self.last_error}" if state == "open" else ""))
        self.state = state
        self.since = now
        self.period += 1
        self.passing = self.period if state == "closed" else -1
        self.consecutive = self.probes_begun = self.probes_passed = 0
        self.alert = self.by_rate or state != "closed"
        if state == "closed":
            self.window = new_window(self.length)

    def suit(self, policy: CircuitBreakerPolicy) -> None:
        """Count on as a new policy asks for. What has been counted is kept, as far as its window holds it."""
        if not policy.by_rate:
            self.window = new_window(policy.window)  # a window that calls have passed by would tell nothing
        elif policy.window != self.length or type(policy.window) is not type(self.length):
            self.window = self.window.resized(policy.window)
        self.by_rate, self.length = policy.by_rate, policy.window
        self.alert = True
