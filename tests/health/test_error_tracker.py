"""An error tracker counts exactly within its window, in bounded memory, from many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import ErrorTracker
from opero.testing import VirtualClock

WINDOW = 3600
STEP = 10


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["error", "success", "recovery"]),
            st.sampled_from(["read", "write"]),
            st.floats(0, 900),
        ),
        max_size=60,
    ),
    st.floats(0, WINDOW),
)
def test_counts_are_those_of_the_time_asked_for_and_at_most_one_step_more(
    records: list[tuple[str, str, float]], seconds: float
) -> None:
    clock = VirtualClock()
    tracker = ErrorTracker(WINDOW, clock=clock)
    model: list[tuple[float, str, bool]] = []
    for what, name, pause in records:
        if what == "error":
            tracker.record_error(name, ValueError())
        elif what == "success":
            tracker.record_success(name)
        else:
            tracker.record_recovery(name, attempts=2, total_time=0.1)
        model.append((clock.now, name, what == "error"))
        clock.advance(pause)

    def since(moment: float, name: str) -> tuple[int, int]:
        kept = [is_error for at, each, is_error in model if each == name and at > moment]
        return sum(kept), len(kept) - sum(kept)

    begin = clock.now - seconds
    for name in ("read", "write"):
        least, most = since(begin, name), since(begin - STEP * 1.001, name)
        errors = tracker.get_error_count(name, seconds)
        assert least[0] <= errors <= most[0]
        rate = tracker.get_error_rate(name, seconds)
        if errors == 0:
            assert rate == 0
        else:
            successes = errors / rate - errors
            assert least[1] - 1e-6 <= successes <= most[1] + 1e-6
        assert tracker.should_circuit_break(name, errors - 1, seconds)
        assert not tracker.should_circuit_break(name, errors, seconds)


def test_a_rate_is_the_share_of_failed_calls() -> None:
    tracker = ErrorTracker()
    assert tracker.get_error_rate("fetch") == 0
    tracker.record_success("fetch")
    assert tracker.get_error_rate("fetch") == 0
    tracker.record_error("fetch", ValueError("no"))
    tracker.record_error("other", ValueError("no"))
    tracker.record_recovery("fetch", attempts=3, total_time=0.5)
    tracker.record_error("fetch", ValueError("no"))
    assert tracker.get_error_rate("fetch", timedelta(minutes=5)) == 0.5
    assert tracker.get_error_count("fetch") == 2


def test_errors_count_until_their_time_has_passed() -> None:
    clock = VirtualClock()
    tracker = ErrorTracker(clock=clock)
    for _ in range(11):
        tracker.record_error("fetch", ValueError("no"))
    assert tracker.should_circuit_break("fetch")
    assert not tracker.should_circuit_break("fetch", threshold=11)
    clock.advance(299)
    assert tracker.should_circuit_break("fetch")
    clock.advance(12)
    assert not tracker.should_circuit_break("fetch")
    assert tracker.get_error_count("fetch") == 11
    clock.advance(WINDOW)
    assert tracker.get_error_count("fetch") == 0


def test_a_short_window_is_looked_at_as_a_whole() -> None:
    tracker = ErrorTracker("1m", clock=VirtualClock())
    tracker.record_error("fetch", ValueError("no"))
    assert tracker.should_circuit_break("fetch", 0)


def test_errors_are_kept_as_texts_without_passwords() -> None:
    clock = VirtualClock()
    tracker = ErrorTracker(clock=clock)
    tracker.record_error("fetch", ConnectionError("redis://user:hunter2@host\nrefused " + "x" * 1000), {"attempt": 4})
    (found,) = tracker.error_history
    assert found["timestamp"].timestamp() == clock.time()
    assert (found["function"], found["error_type"], found["context"]) == ("fetch", "ConnectionError", {"attempt": 4})
    assert found["error_message"].startswith("redis://***@host refused xxx")
    assert len(found["error_message"]) == 500


def test_the_last_recovery_of_a_function_is_kept() -> None:
    tracker = ErrorTracker(clock=VirtualClock())
    tracker.record_success("other")
    tracker.record_recovery("fetch", attempts=2, total_time=0.5)
    tracker.record_recovery("fetch", attempts=3, total_time=1.5)
    assert tracker.recovery_times.keys() == {"fetch"}
    assert {key: tracker.recovery_times["fetch"][key] for key in ("attempts", "total_time")} == {
        "attempts": 3,
        "total_time": 1.5,
    }


def test_memory_is_bounded_by_the_window_and_the_functions_in_use() -> None:
    clock = VirtualClock()
    tracker = ErrorTracker(WINDOW, clock=clock)
    for _ in range(5000):
        tracker.record_error("fetch", ValueError("no"))
        clock.advance(7)
    assert len(tracker.error_history) == 1000
    assert len(tracker._functions["fetch"].steps) <= 362
    for number in range(10_000):
        tracker.record_success(f"function {number}")
        clock.advance(3.6)  # 1000 of them within the window
    assert len(tracker._functions) <= 2002
    assert "function 9999" in tracker._functions


def test_no_record_of_a_thread_is_lost() -> None:
    tracker = ErrorTracker()

    def work(_: int) -> None:
        for _ in range(2000):
            tracker.record_error("fetch", ValueError())
            tracker.record_success("fetch")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert tracker.get_error_count("fetch") == 16_000
    assert tracker.get_error_rate("fetch") == 0.5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: ErrorTracker(0), "would remember nothing"),
        (lambda: ErrorTracker("soon"), "'soon' is not a duration"),
        (lambda: ErrorTracker("1h").get_error_rate("fetch", "2h"), r"remembers 1h: use ErrorTracker\(window='2h'\)"),
        (lambda: ErrorTracker("1m").should_circuit_break("fetch", 10, "5m"), "remembers 1m"),
        (lambda: ErrorTracker().should_circuit_break("fetch", 0.5), "for a share use get_error_rate"),  # type: ignore[arg-type]
        (lambda: ErrorTracker().should_circuit_break("fetch", True), "a number of errors"),
    ],
)
def test_what_cannot_be_answered_is_refused(ask: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ask()
