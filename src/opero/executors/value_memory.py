"""The memory of a profile for the values of a fallback argument, and what the attempts of one call tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from opero.errors import RejectedError
from opero.events import ValueRestored, ValueSetAside
from opero.executors.state import values as state
from opero.executors.state.home import Holder, Moved
from opero.executors.state.values import Rules
from opero.executors.state.values_home import LocalValues, ValuesHome
from opero.failures import Kind
from opero.observe.subscriptions import emit
from opero.policies.types import approximate_duration
from opero.runtime.generators import Started
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.events import Event
    from opero.executors.call import Call
    from opero.executors.state.values import Id, Plan
    from opero.policies.fallback import FallbackPolicy
    from opero.runtime.clock import Clock

    Values = Sequence[Any]

MOST_IDS = 1024


class ValueMemory(Holder[ValuesHome]):
    """What is remembered of the values of a fallback argument, shared by all functions that are bound to a profile."""

    def __init__(self, policy: FallbackPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, LocalValues())
        self.clock = clock
        self.name = name
        self.rules = Rules(policy.order, policy.weights, policy.remember > 0)
        self._key = b""
        self._ids: dict[str, Id] = {}

    def ids(self, values: Values) -> list[Id]:
        """Return the short hashes of values."""
        key, ids = self.home.key, self._ids
        if key != self._key:  # the memory has moved
            self._key, ids = key, {}
            self._ids = ids
        return [ids.get(each) or self._new_id(each) if type(each) is str else _id_of(each, key) for each in values]

    def _new_id(self, value: str) -> Id:
        if len(self._ids) >= MOST_IDS:
            self._ids.clear()
        found = self._ids[value] = _id_of(value, self._key)
        return found

    def next_turn(self) -> int:
        """Return the number of a call, for orders that go round."""
        return 0 if self.rules.order == "in_order" else self.ask(lambda home: home.next_turn())

    def aside(self) -> list[dict[str, Any]]:
        """Return the values that are set aside as plain data: their short hash, why, and for how many seconds."""
        found: list[dict[str, Any]] = self.change(_aside, self.clock.monotonic())
        return found

    def change(self, decide: Callable[..., Any], *args: Any) -> Any:
        """Run a decision on the memory."""
        return self.ask(lambda home: home.change(decide, *args))

    def choose(self, ids: list[Id], call: Call | None = None) -> Plan:
        """Decide in which order a call asks the values, and begin with the first."""
        turn, now = self.next_turn(), self.clock.monotonic()
        found: Plan = self.ask(lambda home: home.change(state.choose, ids, self.rules, turn, home.owner, now, call))
        return found

    def plan(self, ids: list[Id]) -> Plan:
        """Decide in which order a call asks the values."""
        turn, now = self.next_turn(), self.clock.monotonic()
        found: Plan = self.ask(lambda home: home.change(state.plan, ids, self.rules, turn, now))
        return found

    def begin(self, value: Id, now: float, call: Call | None = None) -> None:
        """Record that an attempt begins."""
        self.ask(lambda home: home.change(state.begin, value, self.rules, home.owner, now, call))

    def set_aside(self, value: Id, seconds: float, *, is_denied: bool) -> bool:
        """Set a value aside, and return whether it was not before."""
        now = self.clock.monotonic()
        decide = partial(state.set_aside, is_denied=is_denied)
        return bool(self.ask(lambda home: home.change(decide, value, now + seconds, now)))

    def give_back(self, value: Id, call: Call | None = None) -> None:
        """End an attempt with a value that the home's `take` has chosen."""
        try:
            self.home.give_back(value, call)
        except Moved:
            self.ask(lambda home: home.give_back(value, call))

    def leave(self, value: Id, call: Call | None = None, *, probes: bool = True) -> None:
        """Record that an attempt has ended."""
        self.ask(lambda home: home.change(partial(state.leave, probes=probes), value, home.owner, call))

    def abandon(self, call: Call) -> None:
        """End the attempt of a call that was interrupted."""
        if call.chosen is not None:
            self.run_later(self.leave, call.chosen, call)


def _aside(memory: state.Memory, now: float) -> list[dict[str, Any]]:
    return [
        {"hash": value, "kind": "denied" if aside.is_denied else "throttled", "for": max(0.0, aside.until - now)}
        for value, aside in memory.aside.items()
    ]


def _id_of(value: Any, key: bytes) -> Id:
    return blake2b(_encoded(value), digest_size=6, key=key).hexdigest()


def _encoded(value: Any) -> bytes:
    """Return bytes that differ for values that differ; for a value that only compares by identity, its address."""
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    reveal = getattr(value, "get_secret_value", None)
    try:
        if reveal is not None:
            return b"c" + _encoded(reveal())
        from opero.cache.content import freeze
        from opero.cache.digest import digest

        return b"d" + digest(freeze(value)).encode()
    except Exception:  # noqa: BLE001  # a value of any type, which cannot be a key in a store
        return b"i%d" % id(value)


class Tries:
    """What the attempts of one call tell of its values.

    A denied value is set aside as soon as another one was not denied, or has not been asked when the call ends. If all
    are denied, the request is at fault rather than the values.

    Args:
        memory: what is remembered.
        argument: the name of the argument.
        values: the values of the call.
        kind_of: says of which kind the failure of a call is.
        throttled_for: returns the seconds for which an exception asks to leave a value alone.
        call: the call.

    Attributes:
        ids: the hashes of the values.
    """

    __slots__ = (
        "_argument",
        "_began",
        "_begun",
        "_call",
        "_denied",
        "_has_failed",
        "_kind_of",
        "_memory",
        "_throttled_for",
        "ids",
    )

    def __init__(
        self,
        memory: ValueMemory,
        argument: str,
        values: Values,
        kind_of: Callable[[Exception, Call], Kind],
        throttled_for: Callable[[Exception], float],
        call: Call,
    ) -> None:
        self.ids = memory.ids(values)
        self._call = call
        self._memory = memory
        self._argument = argument
        self._kind_of = kind_of
        self._throttled_for = throttled_for
        self._begun: int | None = None
        self._began = 0.0
        self._denied: dict[int, Exception] = {}
        self._has_failed = False

    def choose(self) -> Plan:
        """Decide in which order the values are asked, and begin with the first."""
        plan = self._memory.choose(self.ids, self._call)
        if not plan.all_aside:
            self._begun = plan.first[0]
        return plan

    def begin(self, position: int) -> None:
        """Record that an attempt begins."""
        memory, self._began = self._memory, self._memory.clock.monotonic()
        if self._begun != position:  # else `choose` has begun with it
            self._begun = position
            memory.begin(self.ids[position], self._began, self._call)

    def worked(self, position: int, result: Any) -> None:
        """Record that an attempt has succeeded."""
        memory, value = self._memory, self.ids[position]
        if memory.rules.remembers:
            self._set_denied_aside()
            prefers = self._has_failed and memory.rules.order == "in_order"
            until = memory.clock.monotonic() + memory.policy.remember if prefers else None
            if memory.change(state.work, value, self._began, until):
                self._report(ValueRestored, position, "works again")
        self._begun = None
        if type(result) is Started:
            result.on_end(lambda _: memory.leave(value, self._call))  # a generator has its value until it ends
        else:
            memory.leave(value, self._call)

    def failed(self, position: int, error: Exception, call: Call) -> None:
        """Record that an attempt has failed."""
        memory, value = self._memory, self.ids[position]
        says_nothing = not memory.rules.remembers or call.turned_away or isinstance(error, RejectedError)
        kind = Kind.CONTROL if says_nothing else self._kind_of(error, call)
        self._begun = None
        if kind is Kind.DENIED:
            self._denied[position] = error
            memory.leave(value, self._call, probes=False)
            memory.change(state.doubt, value, memory.clock.monotonic())
            return
        memory.leave(value, self._call)
        if kind is Kind.CONTROL:
            return
        self._set_denied_aside()
        if kind is Kind.PERMANENT:
            memory.change(state.accept, value)
        elif kind is Kind.THROTTLED:
            seconds = self._throttled_for(error)
            if memory.set_aside(value, seconds, is_denied=False):
                self._report(
                    ValueSetAside, position, "was throttled and is not asked", error, kind=kind, seconds=seconds
                )
        else:
            self._has_failed = True

    def close(self) -> None:
        """Record that the call has ended, however."""
        if self._begun is not None:
            self._memory.leave(self.ids[self._begun], self._call)
            self._begun = None
        if self._denied:
            if self._memory.change(state.are_denied, self.ids, list(self._denied)):
                for position in self._denied:
                    self._memory.leave(self.ids[position], self._call)
                self._denied = {}  # their tracebacks refer to this
            else:
                self._set_denied_aside()

    def _set_denied_aside(self) -> None:
        seconds = self._memory.policy.remember
        for position, error in self._denied.items():
            is_new = self._memory.set_aside(self.ids[position], seconds, is_denied=True)
            self._memory.leave(self.ids[position], self._call)
            if is_new:
                self._report(
                    ValueSetAside, position, "was denied and is asked last", error, kind=Kind.DENIED, seconds=seconds
                )
        self._denied = {}

    def _report(
        self, event: type[Event], position: int, what: str, error: Exception | None = None, **values: Any
    ) -> None:
        """Log an event and call its handlers. The text of the exception is not shown, as it may contain the value."""
        memory, short = self._memory, self.ids[position][:6]
        why = "" if error is None else f" for {approximate_duration(values['seconds'])} ({type(error).__name__})"
        fields: dict[str, Any] = {**memory.origin, **values}
        fields |= {"argument": self._argument, "position": position, "hash": short}
        text = "%s: value %d of %s (#%s) %s%s"
        log(event.name, text, memory.name, position + 1, self._argument, short, what, why, clock=memory.clock, **fields)
        emit(event, memory.hooks, **fields)
