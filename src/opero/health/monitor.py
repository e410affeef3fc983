"""The health monitor: runs checks side by side, each within a time limit of its own, and keeps their results."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from opero.errors import describe, nearest
from opero.health.check import Check
from opero.health.contributions import Contribution, contributions
from opero.health.status import HealthStatus, History
from opero.registry.registry import Registry
from opero.runtime.async_library import in_trio, together
from opero.runtime.clock import SYSTEM, Clock
from opero.runtime.forking import renew_in_child
from opero.runtime.functions import full_name
from opero.runtime.hosts import AsyncHost, Outcome

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike

T = TypeVar("T")


class HealthMonitor:
    """Runs health checks, and tells how healthy the program is.

        monitor = HealthMonitor(registry=registry)
        monitor.register_health_check("database", ping, timeout="2s", critical=True)
        results = await monitor.run_all_health_checks()      # name → HealthStatus
        monitor.get_overall_health()                         # "healthy", "degraded", "unhealthy" or "unknown"

    A check is a sync or async function without arguments. It is unhealthy if it raises an exception, returns False or
    does not end within its time limit. It may return "degraded" or "unhealthy"; whatever else it returns is healthy.
    Sync checks run in threads. A check that has exceeded its limit and still runs is not started a second time.

    Args:
        registry: what opero itself knows of it is added to the results: the circuit breakers, rate limits and bulkheads
            of its profiles and functions that have been called, their shared cache stores, and its configuration.
        critical: the names of profiles without which the program cannot work: `is_ready` is False while a circuit of
            theirs is open.
        clock: the source of time. Default: the system's.

    Raises:
        PolicyNotFoundError: `critical` names a profile that does not exist.
        TypeError: an argument is of another type.
        ValueError: `critical` is given without a registry.
    """

    def __init__(
        self, registry: Registry | None = None, *, critical: Iterable[str] = (), clock: Clock | None = None
    ) -> None:
        if registry is not None and not isinstance(registry, Registry):
            raise TypeError(f"HealthMonitor() expects a Registry, not a value of type {type(registry).__name__}")
        if isinstance(critical, str):
            raise TypeError(f"critical expects the names of profiles in a list: critical=[{critical!r}]")
        self._registry = registry
        self._critical = frozenset(critical)
        if self._critical and registry is None:
            raise ValueError(
                "critical names profiles of a registry: pass registry=…, or register_health_check(…, critical=True) "
                "for a check of your own"
            )
        for profile in self._critical:
            assert registry is not None
            registry[profile]  # raises
        self._clock = clock or SYSTEM
        self._checks: dict[str, Check] = {}
        self._parts: dict[str, Contribution] = {}
        self._part_histories: dict[str, History] = {}
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def after_fork(self) -> None:
        """The checks that run are those of the parent."""
        for each in self._checks.values():
            each.after_fork()

    # Checks

    def register_health_check(
        self,
        name: str,
        check: Callable[[], Any],
        timeout: DurationLike = 5.0,
        *,
        critical: bool = False,
        replace: bool = False,
    ) -> None:
        """Register a check.

        Args:
            name: its name. Where opero contributes a result of that name, this check takes its place.
            check: a sync or async function without arguments, which may be a bound one.
            timeout: how long a run may take: seconds, or text such as "500ms".
            critical: whether the program cannot work without it: `is_ready` is False unless it has been run and is not
                unhealthy.
            replace: whether it may replace another check of that name, whose results are forgotten.

        Raises:
            ValueError: there is another check of that name already, or the timeout is no duration.
            TypeError: the check cannot be called without arguments, or is a generator.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"a health check needs a name, which is a string, not {name!r}")
        added = Check(name, check, timeout, critical=critical, clock=self._clock)
        with self._lock:
            before = self._checks.get(name)
            if before is not None and not replace:
                raise ValueError(
                    f"there is a health check {name!r} already, {full_name(before.function)}: choose another name, or "
                    "pass replace=True"
                )
            self._checks = {**self._checks, name: added}

    @property
    def health_checks(self) -> Mapping[str, Callable[[], Any]]:
        """The registered checks by name."""
        return {name: check.function for name, check in self._checks.items()}

    @property
    def status_history(self) -> Mapping[str, tuple[HealthStatus, ...]]:
        """The last 100 results of each check and of what opero contributes, by name, the newest last."""
        with self._lock:
            return {name: tuple(history.results) for name, history in self._histories().items()}

    # Running them

    async def run_health_check(self, name: str) -> HealthStatus:
        """Run one check, and return its result. It may also be the name of a result that opero contributes.

        Raises:
            ValueError: there is no check of that name.
        """
        check = self._checks.get(name)
        if check is not None:
            return await self._run(check)
        parts = await self._contributions()
        if name not in parts:
            raise ValueError(f"there is no health check {name!r}{nearest(name, [*self._checks, *parts])}")
        return self._note(parts)[name]

    async def run_all_health_checks(self) -> dict[str, HealthStatus]:
        """Run all checks side by side, and return their results by name, followed by what opero contributes."""
        checks = list(self._checks.values())
        results = await together(*(self._run(each) for each in checks))
        found = {each.name: result for each, result in zip(checks, results, strict=True)}
        return {**found, **self._note(await self._contributions())}

    def run_health_check_sync(self, name: str) -> HealthStatus:
        """As `run_health_check`, for sync code: blocks until the check has ended. Async checks run in a new event loop.

        Raises:
            RuntimeError: an event loop runs in this thread, which would be blocked.
        """
        return self._block("run_health_check", lambda: self.run_health_check(name))

    def run_all_health_checks_sync(self) -> dict[str, HealthStatus]:
        """As `run_all_health_checks`, for sync code: blocks until all checks have ended.

        Raises:
            RuntimeError: an event loop runs in this thread, which would be blocked.
        """
        return self._block("run_all_health_checks", self.run_all_health_checks)

    # What they have found

    def get_overall_health(self) -> Literal["healthy", "degraded", "unhealthy", "unknown"]:
        """Return the health of the program by the latest results.

        It is "unhealthy" if what is critical is unhealthy, "degraded" if anything else is not healthy, and "unknown" if
        nothing has been run yet. Checks that have not been run do not count.
        """
        with self._lock:
            latest = [each.latest.status for each in self._histories().values() if each.latest is not None]
            if not latest:
                return "unknown"
            if self._is_critical_down():
                return "unhealthy"
        return "healthy" if set(latest) == {"healthy"} else "degraded"

    def is_ready(self) -> bool:
        """Return whether the program can do its work, by the latest results: for a readiness probe.

        Only what is critical counts: a check of your own must have been run and not be unhealthy, and a circuit must
        not be open. Without any, a program is always ready. A liveness probe should run no checks at all: a program
        that is restarted since a dependency is down only loses what it has.
        """
        with self._lock:
            has_run = all(each.history.latest is not None for each in self._checks.values() if each.critical)
            return has_run and not self._is_critical_down()

    def _is_critical_down(self) -> bool:
        critical = [each.history for each in self._checks.values() if each.critical]
        parts = [name for name, part in self._parts.items() if part.profiles & self._critical]
        critical += [self._part_histories[name] for name in parts if name not in self._checks]
        return any(each.latest is not None and each.latest.status == "unhealthy" for each in critical)

    async def _run(self, check: Check) -> HealthStatus:
        started = self._clock.monotonic()
        finding = await check.run()
        with self._lock:
            now = self._clock.monotonic()
            return check.history.add(check.name, finding, now - started, now)

    # What opero contributes

    async def _contributions(self) -> dict[str, Contribution]:
        if self._registry is None:
            return {}
        # In a thread: state may be in a file, or wherever else a home keeps it.
        return await AsyncHost(self._clock).offload(contributions, self._registry)

    def _note(self, parts: dict[str, Contribution]) -> dict[str, HealthStatus]:
        """Add the state of all parts to their histories, and forget parts that there are no longer."""
        now = self._clock.monotonic()
        with self._lock:
            before = self._part_histories
            self._parts = parts
            self._part_histories = {name: before.get(name) or History() for name in parts}
            return {
                name: self._part_histories[name].add(name, part.finding, 0.0, now)
                for name, part in parts.items()
                if name not in self._checks
            }

    def _histories(self) -> dict[str, History]:
        own = {name: check.history for name, check in self._checks.items()}
        return {**own, **{name: each for name, each in self._part_histories.items() if name not in own}}

    # Sync callers

    def _block(self, name: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in an event loop of another thread, until it has a result.

        The loop may take longer to end, as it waits for threads that checks have started.
        """
        if in_trio() or asyncio._get_running_loop() is not None:
            raise RuntimeError(f"{name}_sync() would block the event loop that runs here: await {name}() instead")
        outcome, done, clock = Outcome(), threading.Event(), self._clock

        async def main() -> None:
            try:
                outcome.value = await start()
            except Exception as error:  # noqa: BLE001  # raised below
                outcome.error = error
            done.set()

        def work() -> None:
            try:
                clock.run(main())
            except BaseException as error:  # noqa: BLE001  # as above
                outcome.error = RuntimeError(describe(error))
            finally:
                done.set()

        threading.Thread(target=copy_context().run, args=(work,), name="opero-health", daemon=True).start()
        done.wait()
        result: T = outcome.get()
        return result
