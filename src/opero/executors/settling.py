"""What a call has really used of a limit whose cost is an estimate: `opero.settle`, and costs that are in results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Protocol

from opero.errors import describe, described, nearest
from opero.executors.costs import MOST
from opero.runtime.functions import refuse_awaitable, short_name
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.state.budgets import Booking

Actual = float | Mapping[str, float]


class Corrected(Protocol):
    """Limits with estimated costs.

    Attributes:
        names: those of all limits.
        estimated: the indices of those whose costs are estimates.
    """

    names: tuple[str, ...]
    estimated: tuple[int, ...]

    def correct(self, booking: Booking, changes: tuple[float, ...], *, is_async: bool) -> None:
        """Take as many permits more than were reserved, or give as many back."""

    def report_unknown(self, index: int, result: Any) -> None:
        """Log that the cost of a call cannot be read from its result."""


class Usage:
    """What one attempt has reserved, and what is known of what it uses.

    Args:
        limiter: the limits from which it has taken permits.
        booking: what it has reserved.
        costs: how much of each limit.
        readers: what reads the real cost of each limit from the result.
        is_async: whether it runs in an event loop, which must not wait for a server.
        outer: the attempt of the code that called.
    """

    __slots__ = ("booking", "costs", "is_async", "is_known", "limiter", "outer", "readers")

    def __init__(
        self,
        limiter: Corrected,
        booking: Booking,
        costs: tuple[float, ...],
        readers: Sequence[Callable[[Any], float | None] | None],
        *,
        is_async: bool,
        outer: Usage | None,
    ) -> None:
        self.limiter = limiter
        self.booking = booking
        self.costs = costs
        self.readers = readers
        self.is_async = is_async
        self.outer = outer
        self.is_known = [False] * len(costs)

    def settle(self, actual: Actual) -> None:
        """Take what the call uses more than it has reserved, or give back what it uses less.

        Raises:
            ValueError: a number is invalid, there is no limit of that name, or there are several to choose from.
        """
        names, estimated = self.limiter.names, self.limiter.estimated
        if not isinstance(actual, Mapping):
            if len(estimated) != 1:
                known = ", ".join(names[index] for index in estimated)
                raise ValueError(f"settle: several limits have an estimated cost; use a mapping with {known}")
            actual = {names[estimated[0]]: actual}
        costs = list(self.costs)
        for name, number in actual.items():
            if name not in names or names.index(name) not in estimated:
                known_names = [names[index] for index in estimated]
                raise ValueError(
                    f"settle: no limit {name!r} whose cost is an estimate{nearest(str(name), known_names)}"
                )
            costs[names.index(name)] = _number(number)
        for name in actual:
            self.is_known[names.index(name)] = True
        self._set(tuple(costs))

    def _set(self, costs: tuple[float, ...]) -> None:
        if costs != self.costs:
            changes = tuple([new - old for new, old in zip(costs, self.costs, strict=True)])
            self.costs = costs
            self.limiter.correct(self.booking, changes, is_async=self.is_async)

    def read(self, result: Any) -> None:
        """Settle by what a result says, for limits of which nothing is known yet."""
        costs = list(self.costs)
        for index, reader in enumerate(self.readers):
            if reader is not None and not self.is_known[index]:
                number = reader(result)
                if number is None:
                    self.limiter.report_unknown(index, result)
                else:
                    costs[index], self.is_known[index] = number, True
        self._set(tuple(costs))

    def read_item(self, item: Any, found: dict[int, float]) -> None:
        """Note what an item of a generator says."""
        for index, reader in enumerate(self.readers):
            if reader is not None and (number := reader(item)) is not None:
                found[index] = number

    def end(self, found: Mapping[int, float]) -> None:
        """Settle a generator that has ended, by what its items have said."""
        costs = list(self.costs)
        for index, reader in enumerate(self.readers):
            if reader is not None and not self.is_known[index]:
                if index in found:
                    costs[index] = found[index]
                else:
                    self.limiter.report_unknown(index, None)
        self._set(tuple(costs))

    def used_nothing(self) -> None:
        """Give back the estimates of a call that the service has refused."""
        estimated = self.limiter.estimated
        self._set(
            tuple(
                [
                    0.0 if index in estimated and not self.is_known[index] else cost
                    for index, cost in enumerate(self.costs)
                ]
            )
        )


current: ContextVar[Usage | None] = ContextVar("opero_usage", default=None)
"""The attempt that runs, if a cost of it is an estimate; None without one."""


def restore(token: Token[Usage | None]) -> None:
    """Make the attempt the current one again that was it before `current.set` returned this token."""
    try:  # noqa: SIM105  # `suppress` would take longer than all the rest
        current.reset(token)
    except ValueError:  # an abandoned coroutine is closed in another context
        pass


def settle(actual: float | Mapping[str, float]) -> bool:
    """Say what the call under way has really cost, of which the `cost` of its rate limit is an estimate.

    The difference is given back to the limit at once, or taken besides, which later calls wait for. So call it when the
    number is final; a stream, when it ends. It has precedence over `cost_from_result`.

        @opero(policy="model")
        def ask(prompt: str, tokens: int) -> str:
            answer = client.responses.create(...)
            opero.settle(answer.usage.total_tokens)
            return answer.output_text

    Args:
        actual: how many permits; where several limits have an estimated cost, a mapping of their names to numbers.

    Returns:
        Whether there was something to settle: False outside of a call, where the policy has no limit with an estimated
        cost, and while opero is switched off.

    Raises:
        ValueError: a number is negative or no number, there is no such limit, or there are several to choose from.
    """
    usage = current.get()
    if usage is None:
        return False
    usage.settle(actual)
    return True


def _number(actual: Any) -> float:
    number = _read(actual)
    if number is None:
        told = described(actual, 30) if isinstance(actual, int | float) else f"of type {type(actual).__name__}"
        raise ValueError(f"settle: the cost of a call is {told}; it must be a number from 0 to 1e18")
    return number


def _read(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        return None
    return float(value)


def reader_of(cost_from_result: Any, name: str) -> Callable[[Any], float | None] | None:
    """Return what reads the cost of a call from its result, or None if the result does not say it.

    Args:
        cost_from_result: a path, or a function of the user's, whose exceptions are logged; None without either.
        name: what messages begin with.
    """
    if cost_from_result is None:
        return None
    if callable(cost_from_result):

        def asked(result: Any) -> float | None:
            try:
                found = cost_from_result(result)
                refuse_awaitable(found, short_name(cost_from_result))
                return _read(found)
            except Exception as error:  # noqa: BLE001  # a user's function may raise anything
                text = "%s: cost_from_result raised %s"
                log("condition_failed", text, name, describe(error), function=name, error=error)
                return None

        return asked
    steps = cost_from_result.split(".")

    def found(result: Any) -> float | None:
        for step in steps:
            result = _step(result, step)
        return _read(result)

    return found


def _step(value: Any, name: str) -> Any:
    """Return what a value has under a name: an item of a mapping or sequence, or an attribute; None if it has none."""
    try:
        if isinstance(value, Mapping):
            return value.get(name)
        if name.isdigit():
            return value[int(name)]
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001  # a property, or a user's type, may raise anything
        return None


class Steps:
    """Runs a generator as an attempt whose costs are estimates, and reads its items.

    Args:
        usage: the attempt.
        started: the generator.
        inner: what runs it besides; None if nothing does.
    """

    def __init__(self, usage: Usage, generator: Any, inner: Any) -> None:
        self.usage = usage
        self.inner = inner
        self.found: dict[int, float] = {}
        self._generator = generator

    def run(self, step: Callable[[Any], Any], message: Any) -> Any:
        """Return the next item."""
        token = current.set(self.usage)
        try:
            item = step(message) if self.inner is None else self.inner.run(step, message)
        finally:
            restore(token)
        self.usage.read_item(item, self.found)
        return item

    def close(self) -> None:
        """Close the generator."""
        token = current.set(self.usage)
        try:
            (self._generator if self.inner is None else self.inner).close()
        finally:
            restore(token)


class AsyncSteps(Steps):
    """The same for an async generator."""

    async def run(self, step: Awaitable[Any]) -> Any:  # type: ignore[override]
        """Return the next item."""
        token = current.set(self.usage)
        try:
            item = await (step if self.inner is None else self.inner.run(step))
        finally:
            restore(token)
        self.usage.read_item(item, self.found)
        return item
