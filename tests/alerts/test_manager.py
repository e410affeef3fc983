"""The alert manager: when alerts fire, what a notification says, how often it comes, and when it is over."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opero import Alert, AlertManager, Policy, events, on
from opero.alerts.conditions import MOST_GROUPS
from opero.alerts.manager import MOST_LISTED
from opero.alerts.thread import thread as the_thread
from opero.errors import ConfigError
from opero.events import EVENTS, AlertFired, AlertResolved, Event, watched
from opero.observe.subscriptions import deliver
from opero.testing import VirtualClock, virtual_clock


class Watched:
    """A manager of one alert on a virtual clock, and the notifications so far."""

    def __init__(self, clock: VirtualClock, **alert: Any) -> None:
        self.clock = clock
        self.told: list[AlertFired] = []
        self.manager = AlertManager({"it": {"notify": [self.told.append], **alert}}, clock=clock).start()

    def after(self, seconds: float) -> list[str]:
        """Look each second for a time, and return the names of the notifications meanwhile."""
        before = len(self.told)
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.manager.check()
        return [each.name for each in self.told[before:]]


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def begin(**alert: Any) -> Watched:
        made.append(Watched(VirtualClock(), **alert))
        return made[-1]

    yield begin
    for each in made:
        each.manager.stop()


def send(name: str, function: str = "app:get", policy: str = "api", **values: Any) -> None:
    deliver(EVENTS[name](function=function, policy=policy, **values))


def retried(function: str = "app:get", policy: str = "api") -> None:
    send("retry_scheduled", function, policy, attempt=2, delay=1.0, is_asked=False, error=ValueError())


def circuit(state: str, function: str = "app:get", policy: str = "api", breaker: str = "api") -> None:
    name = {"open": "circuit_opened", "closed": "circuit_closed", "half_open": "circuit_half_opened"}.get(state)
    send(name or "circuit_forced", function, policy, breaker=breaker, before="", state=state)


def called(successes: int, failures: int = 0, *, of: Any = None) -> Any:
    """Call a function that succeeds and fails so many times."""

    def function(fails: bool) -> None:
        if fails:
            raise ValueError("no")

    bound = of or Policy(retry=0).apply(function)
    for fails in [False] * successes + [True] * failures:
        try:
            bound(fails)
        except ValueError:
            assert fails
    return bound


# Counts of events


def test_so_many_events_within_a_time_fire(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled", "count": 3, "over": "10s"})
    retried(), retried()
    assert it.after(1) == []
    retried()
    assert it.after(1) == ["alert_fired"]
    (event,) = it.told
    assert (event.function, event.policy, event.alert) == ("app:get", "api", "it")
    assert event.message == "app:get: 3 × retry_scheduled within 10s"
    assert (event.functions, event.policies) == (("app:get",), ("api",))
    assert event.time == it.clock.time()


def test_events_that_are_too_far_apart_do_not(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled", "count": 3, "over": "10s"})
    for _ in range(10):
        retried()
        assert it.after(6) == []


def test_functions_are_counted_apart_by_default(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled", "count": 2})
    retried("app:one"), retried("app:two")
    assert it.after(1) == []


@pytest.mark.parametrize(("each", "message"), [("policy", "api: 2 × "), ("all", "2 × ")])
def test_functions_may_be_counted_together(watch: Any, each: str, message: str) -> None:
    it = watch(when={"event": "retry_scheduled", "count": 2}, each=each)
    retried("app:one"), retried("app:two")
    assert it.after(1) == ["alert_fired"]
    assert it.told[0].message.startswith(message)


@pytest.mark.parametrize(("pattern", "fires"), [("ap*", True), ("other", False)])
@pytest.mark.parametrize("field", ["policy", "function"])
def test_patterns_say_what_counts(watch: Any, field: str, pattern: str, fires: bool) -> None:
    it = watch(when={"event": "retry_scheduled"}, **{field: pattern})
    retried()
    assert bool(it.after(1)) is fires


def test_what_calls_count_needs_no_handler_that_would_delay_them(watch: Any) -> None:
    it = watch(when={"any": [{"event": "call_failed", "count": 3}, {"share": "50%"}, {"event": "cache_hit"}]})
    assert not watched.calls
    assert not watched.hits
    called(0, 3)
    assert it.after(1) == ["alert_fired"]
    assert "3 × call_failed within 5m" in it.told[0].message


def test_calls_of_before_do_not_count(watch: Any) -> None:
    bound = called(0, 5)
    it = watch(when={"event": "call_failed", "count": 3})
    assert it.after(2) == []
    called(0, 3, of=bound)
    assert it.after(1) == ["alert_fired"]


def test_successful_calls_can_be_counted_too(watch: Any) -> None:
    it = watch(when={"event": "call_succeeded", "count": 5})
    called(4, 9)
    assert it.after(1) == []
    called(5)
    assert it.after(1) == ["alert_fired"]


# Shares of calls


def test_a_share_of_the_calls_fires_if_there_are_enough(watch: Any) -> None:
    it = watch(when={"share": "20%", "over": "10s", "min_calls": 20})
    bound = called(8, 2)
    assert it.after(1) == [], "too few calls"
    called(9, 1, of=bound)
    assert it.after(1) == [], "too few failures"
    called(0, 2, of=bound)
    assert it.after(1) == ["alert_fired"]
    assert it.told[0].message.endswith(": 5 failures in 22 calls within 10s (23%)")


@pytest.mark.parametrize(("of", "policy"), [("retries", {"retry": 1}), ("fallbacks", {"fallback": {"default": 0}})])
def test_other_things_than_failures_may_be_looked_for(watch: Any, of: str, policy: dict[str, Any]) -> None:
    def fails() -> int:
        raise ConnectionError("reset")

    it = watch(when={"share": 0.5, "of": of, "min_calls": 5})
    bound = Policy(**policy).apply(fails, clock=VirtualClock())
    for _ in range(5):
        try:
            bound()
        except Exception as error:
            assert "reset" in str(error)
    assert it.after(1) == ["alert_fired"]
    assert f"5 {of} in 5 calls" in it.told[0].message


def test_statistics_that_are_reset_do_no_harm(watch: Any) -> None:
    it = watch(when={"share": "50%", "min_calls": 4})
    bound = called(10)
    it.after(1)
    bound.stats.drain()
    called(0, 2, of=bound)
    assert it.after(1) == []
    called(0, 8, of=bound)
    assert it.after(1) == ["alert_fired"]


# Hysteresis, resolving, repeating


def test_it_is_resolved_after_a_calm_time(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled", "over": "10s"}, calm="30s")
    retried()
    assert it.after(1) == ["alert_fired"]
    assert it.after(35) == []
    assert it.manager.status()["it"].firing
    assert it.after(10) == ["alert_resolved"]
    assert not it.manager.status()["it"].firing
    event = it.told[-1]
    assert isinstance(event, AlertResolved)
    assert (event.functions, event.message) == (("app:get",), "app:get: 1 × retry_scheduled within 10s")
    assert 9 <= event.seconds <= 12, "how long it held"


def test_it_stays_until_the_lower_threshold(watch: Any) -> None:
    it = watch(when={"share": "50%", "over": "10s", "until": "10%", "min_calls": 10}, calm=0)
    bound = called(5, 5)
    assert it.after(1) == ["alert_fired"]
    called(30, 0, of=bound)
    assert it.after(5) == [], "5 of 40 are 12%"
    called(60, 0, of=bound)
    assert it.after(1) == ["alert_resolved"]


def test_what_flaps_is_notified_once_an_hour(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled", "over": "10s"}, calm="5s")
    names = []
    for _ in range(60):
        retried()
        names += it.after(59)
    assert names == ["alert_fired", "alert_resolved"]
    retried()
    it.after(60)
    retried()
    assert it.after(30) == ["alert_fired", "alert_resolved"], "after the hour"


def test_while_it_goes_on_it_is_repeated(watch: Any) -> None:
    it = watch(when={"state": "circuit_open"}, repeat="1m")
    circuit("open")
    assert it.after(150) == ["alert_fired"] * 3
    assert [round(each.seconds) for each in it.told] == [0, 60, 120]


def test_what_came_too_soon_to_be_notified_is_notified_later_if_it_goes_on(watch: Any) -> None:
    it = watch(when={"state": "circuit_open"}, calm=0, repeat="100s")
    circuit("open")
    assert it.after(10) == ["alert_fired"]
    circuit("closed")
    assert it.after(10) == ["alert_resolved"]
    circuit("open")
    assert it.after(70) == []
    assert it.after(20) == ["alert_fired"]


# States


def test_an_open_circuit_fires_after_it_has_lasted(watch: Any) -> None:
    it = watch(when={"state": "circuit_open", "lasts": "2m"})
    circuit("open")
    assert it.after(100) == []
    circuit("half_open")
    circuit("open")
    assert it.after(25) == ["alert_fired"], "half open is not over"
    assert it.told[0].message == "app:get: api: circuit open for 2m"


def test_a_circuit_that_closes_in_time_does_not_fire(watch: Any) -> None:
    it = watch(when={"state": "circuit_open", "lasts": "2m"})
    for _ in range(5):
        circuit("open")
        assert it.after(100) == []
        circuit("closed")
        assert it.after(10) == []


@pytest.mark.parametrize(("state", "fires"), [("forced_open", True), ("forced_closed", False)])
def test_a_forced_circuit_is_open_or_not(watch: Any, state: str, fires: bool) -> None:
    it = watch(when={"state": "circuit_open"})
    circuit(state)
    assert bool(it.after(1)) is fires


def test_a_real_circuit_fires_and_resolves(watch: Any) -> None:
    it = watch(when={"state": "circuit_open"}, calm=0)

    def fails() -> None:
        raise ConnectionError("reset")

    bound: Any = Policy(circuit_breaker=2).apply(fails, clock=it.clock)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            bound()
    assert it.after(1) == ["alert_fired"]
    bound.binding.circuit_breaker.reset()
    assert it.after(1) == ["alert_resolved"]


def test_a_cache_store_that_is_down_is_a_state(watch: Any) -> None:
    it = watch(when={"state": "cache_unavailable", "lasts": "30s"}, calm=0)
    send("cache_failed", "", "", cache="redis at x", what="not_stored", message="")
    send("cache_failed", "", "", cache="redis at x", what="unavailable", message="")
    assert it.after(31) == ["alert_fired"]
    send("cache_restored", "", "", cache="redis at x", message="", skipped=3)
    assert it.after(1) == ["alert_resolved"]


def test_a_value_that_was_set_aside_is_a_state_until_its_time_is_over(watch: Any) -> None:
    it = watch(when={"state": "value_set_aside"}, calm=0)
    send("value_set_aside", argument="key", position=1, hash="abc", kind=events.EVENTS, seconds=60.0)
    assert it.after(1) == ["alert_fired"]
    assert "key[1]: value set aside" in it.told[0].message
    assert it.after(61) == ["alert_resolved"]


def test_a_rejected_configuration_is_a_state_until_one_is_in_force(watch: Any) -> None:
    it = watch(when={"state": "configuration_rejected"}, calm=0)
    send("configuration_rejected", "", "", error=ValueError())
    assert it.after(1) == ["alert_fired"]
    send("configuration_reloaded", "", "", changes=())
    assert it.after(1) == ["alert_resolved"]


# Combinations


def test_one_of_several_conditions_is_enough(watch: Any) -> None:
    it = watch(when={"any": [{"state": "circuit_open"}, {"event": "timed_out"}]})
    send("timed_out", scope="total", error=ValueError())
    circuit("open")
    assert it.after(1) == ["alert_fired"]
    assert it.told[0].message == "app:get: api: circuit open for 1s, 1 × timed_out within 5m"


def test_all_conditions_have_to_hold_for_the_same_function(watch: Any) -> None:
    it = watch(when={"all": [{"event": "retry_scheduled"}, {"event": "timed_out"}]})
    retried("app:one")
    send("timed_out", "app:two", scope="total", error=ValueError())
    assert it.after(1) == []
    send("timed_out", "app:one", scope="total", error=ValueError())
    assert it.after(1) == ["alert_fired"]
    assert it.told[0].functions == ("app:one",)


def test_the_circuit_of_a_profile_belongs_to_all_its_functions(watch: Any) -> None:
    it = watch(when={"all": [{"state": "circuit_open"}, {"event": "retry_scheduled"}]})
    circuit("open", function="")
    retried("app:one"), retried("other:one", "other")
    assert it.after(1) == ["alert_fired"]
    assert (it.told[0].functions, it.told[0].policies) == (("app:one",), ("api",))


# Notifications


def test_one_notification_lists_all_functions(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled"}, text="call somebody")
    for number in range(3):
        retried(f"app:f{number}")
    assert it.after(1) == ["alert_fired"]
    (event,) = it.told
    assert event.functions == ("app:f0", "app:f1", "app:f2")
    assert (event.function, event.text) == ("", "call somebody")


def test_a_notification_and_the_memory_are_bounded(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled"})
    for number in range(MOST_GROUPS + 5000):
        retried(f"app:f{number}")
    condition = it.manager._tracked["it"].condition
    assert len(condition._windows) == MOST_GROUPS + 1
    it.after(1)
    assert len(it.told[0].functions) == MOST_LISTED
    assert it.told[0].message.endswith(f"and {MOST_GROUPS + 1 - MOST_LISTED} more")
    it.after(400)
    assert condition._windows == {}, "what is over is forgotten"


def test_notifications_are_events(watch: Any, heard: list[Any]) -> None:
    it = watch(when={"event": "retry_scheduled"}, notify=[])
    retried()
    it.after(1)
    fired = [each for each in heard if isinstance(each, AlertFired)]
    assert [each.as_dict()["event"] for each in fired] == ["alert_fired"]


def test_an_alert_may_be_about_alerts(watch: Any) -> None:
    it = watch(when={"event": "alert_fired", "count": 2})
    for number in range(2):
        other = watch(when={"event": "retry_scheduled"}, function=f"app:f{number}")
        retried(f"app:f{number}")
        other.after(1)
    send("alert_fired", "", "", alert="x", message="")
    send("alert_fired", "", "", alert="x", message="")
    assert it.after(2) == ["alert_fired"]


def test_the_log_is_told_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="opero")
    clock = VirtualClock()
    with AlertManager({"storm": Alert(when={"event": "retry_scheduled"}, calm=1)}, clock=clock) as manager:
        retried()
        manager.check()
        clock.advance(400)
        manager.check()
    fired, resolved = caplog.records
    assert (fired.levelname, fired.getMessage()) == ("ERROR", "alert storm: app:get: 1 × retry_scheduled within 5m")
    assert (resolved.levelname, resolved.event) == ("INFO", "alert_resolved")  # type: ignore[attr-defined]
    assert (fired.alert, fired.functions) == ("storm", ["app:get"])  # type: ignore[attr-defined]


def test_a_function_that_fails_is_logged_and_the_others_are_told(watch: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: AlertFired) -> None:
        raise RuntimeError("no mail server")

    told: list[AlertFired] = []
    it = watch(when={"event": "retry_scheduled"}, notify=[broken, told.append])
    retried()
    it.after(1)
    assert len(told) == 1
    assert "no mail server" in caplog.text


def test_an_async_function_is_awaited() -> None:
    told = threading.Event()

    async def page(event: AlertFired) -> None:
        told.set()

    with AlertManager({"it": Alert(when={"event": "retry_scheduled"}, notify=page)}, clock=VirtualClock()) as manager:
        retried()
        manager.check()
        assert told.wait(60)


# Managers


@pytest.mark.parametrize("wrong", [None, [], "x", 3])
def test_what_is_no_mapping_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="mapping of names to alerts"):
        AlertManager(wrong)


def test_an_invalid_alert_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown event 'retry'"):
        AlertManager({"it": {"when": {"event": "retry"}}})


def test_replacing_keeps_what_is_unchanged(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled"})
    retried()
    assert it.after(1) == ["alert_fired"]
    it.manager.replace({**it.manager.alerts, "other": {"when": {"event": "timed_out"}}})
    assert it.after(10) == [], "it is not told again"
    assert it.manager.status()["it"].firing
    it.manager.replace({"it": {"when": {"event": "timed_out"}}})
    assert not it.manager.status()["it"].firing


def test_one_that_is_switched_off_does_not_run(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled"}, enabled=False)
    retried()
    assert it.after(1) == []
    assert it.manager.alerts == {}


def test_nobody_listens_after_the_end(watch: Any) -> None:
    it = watch(when={"event": "retry_scheduled"})
    assert EVENTS["retry_scheduled"].handlers
    it.manager.stop()
    it.manager.stop()
    assert not EVENTS["retry_scheduled"].handlers
    retried()
    assert it.after(1) == []
    it.manager.start()
    retried()
    assert it.after(1) == ["alert_fired"]


def test_it_follows_the_clock_of_a_test() -> None:
    told: list[Event] = []
    with virtual_clock() as clock:
        manager = AlertManager({"it": Alert(when={"state": "circuit_open", "lasts": "5m"}, notify=told.append)})
        with manager:
            circuit("open")
            clock.advance(301)
            manager.check()
    assert len(told) == 1
    assert the_thread._thread is None


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_by_itself_it_looks_in_one_thread_which_ends_with_the_last_manager() -> None:
    told: list[str] = []

    def tell(_: Event) -> None:
        told.append(threading.current_thread().name)

    alert = Alert(when={"share": "50%", "min_calls": 2}, notify=tell)
    with AlertManager({"it": alert}), AlertManager({"it": alert}):
        bound = called(0, 5)
        until(lambda: len(told) == 2)
        thread = the_thread._thread
        assert [each.name for each in threading.enumerate()].count("opero-alerts") == 1
    assert told == ["opero-alerts"] * 2
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()
    del bound


def test_a_manager_that_is_started_while_the_thread_ends_has_one() -> None:
    told: list[Any] = []
    alert = Alert(when={"event": "retry_scheduled"}, notify=told.append)
    for _ in range(20):
        AlertManager({"it": alert}).start().stop()
    with AlertManager({"it": alert}):
        retried()
        until(lambda: told)


FORKED = """
import os, sys, time
from opero import Alert, AlertManager, Policy

told = []

def tell(event):
    told.append(event)
    os.write(1, f"{os.getpid()} {event.message}\\n".encode())

def fails():
    raise ConnectionError("reset")

AlertManager({"it": Alert(when={"share": "50%", "min_calls": 2}, notify=tell)}).start()
bound = Policy(retry=0).apply(fails)
child = os.fork()
if child:
    os.waitpid(child, 0)
    time.sleep(1.5)  # in which the parent would tell, if it counted what happened in the child
    os._exit(0)
for _ in range(3):
    try:
        bound()
    except ConnectionError:
        pass
end = time.monotonic() + 60
while not told and time.monotonic() < end:
    time.sleep(0.05)
os.write(1, f"child {os.getpid()}\\n".encode())
os._exit(0)
"""


def test_in_a_forked_child_alerts_go_on_with_its_own_counts() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=True)
    told, child = done.stdout.splitlines()
    assert told == f"{child.removeprefix('child ')} __main__:fails: 3 failures in 3 calls within 5m (100%)", done.stderr


def test_worker_processes_of_maps_have_no_alerts(watch: Any) -> None:
    it = watch(when={"event": "call_failed", "count": 3})
    mapped: Any = Policy(retry=0, parallel={"mode": "process", "workers": 2, "on_error": "return"}).apply(fails_always)
    mapped.map([1, 2, 3])
    assert it.after(1) == ["alert_fired"], "they count in the process that runs the map"
    assert runs_in_worker.map([1]) == [False]


def fails_always(_: int) -> None:
    raise ValueError("no")


def _is_running(_: int) -> bool:
    return AlertManager({"it": Alert(when={"event": "timed_out"})}).start().is_running


runs_in_worker: Any = Policy(parallel={"mode": "process", "workers": 1}).apply(_is_running)


def test_a_listener_and_an_alert_do_not_disturb_each_other(watch: Any) -> None:
    heard: list[Event] = []
    off = on("retry_scheduled", heard.append)
    it = watch(when={"event": "retry_scheduled"})
    retried()
    off()
    retried()
    assert len(heard) == 1
    assert it.after(1) == ["alert_fired"]
    assert "2 ×" in it.told[0].message
    assert os.getpid()


SHORT = """
from opero import Alert, AlertManager, Policy

def fails():
    raise ConnectionError("reset")

AlertManager({"it": Alert(when={"event": "call_failed"}, notify=NOTIFY)}).start()
try:
    Policy(retry=0).apply(fails)()
except ConnectionError:
    pass
"""


def test_a_program_that_ends_at_once_tells_on_stderr_if_nobody_hears_its_log() -> None:
    command = [sys.executable, "-c", SHORT.replace("NOTIFY", "'log'")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == "opero: alert it: __main__:fails: 1 × call_failed within 5m\n"


def test_a_program_does_not_wait_for_a_webhook_that_is_not_there() -> None:
    code = SHORT.replace("NOTIFY", "{'url': 'http://127.0.0.1:1/', 'retries': 1000}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
