"""Every record that opero logs is in one table, with its level, its fields and its limit."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import opero
from opero.observe.logs import STANDARD
from opero.runtime import log_texts
from opero.runtime.log import MOST_KEPT, Limiter, limiter, log, logger
from opero.runtime.log_records import ENDED_BY, RECORDS
from opero.runtime.log_texts import readable
from opero.testing import VirtualClock, fresh_state, virtual_clock

SOURCE = Path(opero.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "logging.md"
PARAMETERS = {"about", "function", "policy", "error", "traceback", "hides", "clock", "call"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """All calls of `log` in the source, by place."""
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in ("log", "self.log"):
                yield f"{file.relative_to(SOURCE).as_posix()}:{node.lineno}", node


def test_every_log_call_names_a_record_of_the_table() -> None:
    dynamic = []
    used = set()
    for place, call in calls():
        name = call.args[0]
        if not isinstance(name, ast.Constant):
            dynamic.append(f"{place.partition(':')[0]}: {ast.unparse(name)}")
            continue
        used.add(name.value)
        assert name.value in RECORDS, place
        named = {each.arg for each in call.keywords if each.arg is not None} - PARAMETERS
        assert named <= set(RECORDS[name.value].fields), f"{place}: {named}"
    events = {"circuit_opened", "circuit_half_opened", "circuit_closed", "circuit_forced"}
    stores = {"cache_failed", "cache_restored", "store_failed", "store_restored"}  # by what `Words` names
    assert used | events | stores | {"value_set_aside", "value_restored"} == set(RECORDS), "each is used"
    assert sorted(dynamic) == [
        "cache/outage.py: rest.words.records[1]",
        "cache/outage.py: words.records[0]",
        "executors/circuit_breaker.py: event.name",
        "executors/rounds.py: event",
        "executors/value_memory.py: event.name",
    ]


def test_nothing_else_in_the_source_logs() -> None:
    found = []
    for file in SOURCE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        name = file.relative_to(SOURCE).as_posix()
        logs_itself = re.search(r"\blogg(er|ing)\.(debug|info|warning|error|exception)\(", text)
        if logs_itself and not name.startswith("testing/"):
            found.append(name)
    assert found == []


def test_the_document_lists_every_record_with_its_level_and_fields() -> None:
    rows = re.findall(r"^\| `(\w+)`(\*?) \| (\w+) \| .*? \| ?(.*) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    listed = {
        name: (level, star == "*", tuple(re.findall(r"`(\w+)`", fields)))
        for name, star, level, fields in rows
        if level in logging.getLevelNamesMapping()
    }
    assert listed == {
        name: (
            logging.getLevelName(each.level),
            each.most == 0 and each.level > logging.DEBUG,
            each.fields,
        )
        for name, each in RECORDS.items()
    }


def test_no_field_has_the_name_of_an_attribute_that_every_record_has() -> None:
    fields = {"event", "function", "policy", "left_out"}.union(*(each.fields for each in RECORDS.values()))
    assert not fields & STANDARD


def test_levels_limit_how_often_a_record_comes() -> None:
    limits = {level: {each.most for each in RECORDS.values() if each.level == level} for level in (10, 20, 30, 40)}
    assert limits == {10: {0}, 20: {1, 0}, 30: {10, 1, 0}, 40: {10, 0}}


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, logger="opero")
    return caplog


def test_a_line_a_minute_tells_how_many_were_left_out(shown: Any) -> None:
    clock = VirtualClock()
    for _ in range(5):
        log("call_recovered", "%s: recovered", "f", function="app:f", clock=clock, attempts=2)
    log("call_recovered", "%s: recovered", "g", function="app:g", clock=clock, attempts=2)
    clock.advance(60)
    log("call_recovered", "%s: recovered", "f", function="app:f", clock=clock, attempts=2)
    assert shown.messages == ["f: recovered", "g: recovered", "f: recovered (and 4 more since)"]
    assert [vars(each).get("left_out") for each in shown.records] == [None, None, 4]


def test_warnings_are_limited_as_well(shown: Any) -> None:
    clock = VirtualClock()
    for _ in range(100):
        log("condition_failed", "failed", function="app:f", clock=clock)
    assert len(shown.records) == 10


def test_what_is_normal_is_not_limited(shown: Any) -> None:
    for _ in range(100):
        log("waiting", "waits", function="app:f", what="rate_limit", seconds=1.0)
    assert len(shown.records) == 100


def test_the_end_of_what_was_told_is_never_left_out(shown: Any) -> None:
    clock = VirtualClock()
    for _ in range(3):
        log("circuit_opened", "open", breaker="api", clock=clock)
        log("circuit_closed", "closed", breaker="api", clock=clock)
    assert shown.messages == ["open", "closed"] * 3
    assert {RECORDS[begun].level > RECORDS[ended].level for begun, ended in ENDED_BY.items()} == {True}


def test_the_limit_follows_the_virtual_clock(shown: Any) -> None:
    with virtual_clock() as clock:
        for _ in range(3):
            log("call_recovered", "recovered", function="app:f")
            clock.advance(30)
    assert shown.messages == ["recovered", "recovered (and 1 more since)"]


def test_fresh_state_forgets_what_was_logged(shown: Any) -> None:
    for _ in range(2):
        log("call_recovered", "recovered", function="app:f")
        fresh_state()
    assert shown.messages == ["recovered"] * 2


def test_the_limiter_is_bounded_with_a_hundred_thousand_functions() -> None:
    tested, clock = Limiter(), VirtualClock()
    admitted = sum(
        tested.admit(("call_recovered", f"app:f{number}"), 1, clock) is not None for number in range(100_000)
    )
    assert len(tested.kept) == MOST_KEPT + 1
    assert admitted == MOST_KEPT + 1
    clock.advance(61)
    assert tested.admit(("call_recovered", "app:new"), 1, clock) == 0
    assert len(tested.kept) == 1, "those whose minute is over are forgotten"


def test_distinct_errors_of_one_function_share_a_line() -> None:
    before = len(limiter.kept)
    for number in range(1000):
        error = type(f"Error{number}", (Exception,), {})(number)
        log("fallback_used", "%s: %r", "f", error, function="app:f", what="default", error=error)
    assert len(limiter.kept) <= before + 1


def test_the_record_has_its_fields_as_plain_data(shown: Any) -> None:
    error = ConnectionError("reset\n  by peer")
    log(
        "retry_scheduled", "%s: %r in %g", "f", error, 0.5, function="app:f", attempt=2, delay=float("inf"), error=error
    )
    record = shown.records[0]
    assert record.getMessage() == "f: ConnectionError('reset by peer') in 0.5"
    assert (record.event, record.function, record.policy) == ("retry_scheduled", "app:f", "")
    assert (record.attempt, record.delay, record.error, record.error_message) == (
        2,
        None,
        "ConnectionError",
        "reset by peer",
    )
    assert record.msg == "%s: %r in %g", "the text of the record groups records of one kind"


def test_the_text_of_an_exception_that_may_contain_a_secret_of_the_callers_is_not_shown(shown: Any) -> None:
    log("retry_refused", "%r", ValueError("key-1"), function="app:f", error=ValueError("key-1"), hides=True)
    assert (shown.messages, shown.records[0].error, shown.records[0].error_message) == (
        ["ValueError"],
        "ValueError",
        None,
    )


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://user:hunter2@host/0", "redis://***@host/0"),
        ("GET /x?api_key=hunter2&page=2 failed", "GET /x?api_key=***&page=2 failed"),
        ("{'access_token': 'hunter2', 'id': 1}", "{'access_token': '***', 'id': 1}"),
        ("Authorization: Bearer hunter2 refused", "Authorization: Bearer *** refused"),
        ("password='hunter2'", "password='***'"),
        ("the token: expired", "the token: expired"),
        ("tokens were counted", "tokens were counted"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert readable(text) == masked


def test_a_long_text_is_cut_after_its_secrets_are_masked() -> None:
    text = "x" * 480 + " redis://user:" + "y" * 100 + "@host"
    assert "yy" not in readable(text, 500)
    assert len(readable("é\n" * 1_000_000, 500)) == 500
    assert len(readable("a_" * 1_000_000)) == log_texts.LONGEST  # and it takes no time


def test_an_exception_whose_text_fails_is_logged_all_the_same(shown: Any) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    log("fallback_used", "%r", BrokenError(), what="default", error=BrokenError())
    assert shown.messages == ["BrokenError('<unprintable BrokenError>')"]


def test_records_name_the_place_that_logs(shown: Any) -> None:
    log("waiting", "waits", what="rate_limit")
    assert shown.records[0].filename == "test_log_records.py"


def test_nothing_is_counted_of_what_is_not_shown() -> None:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        log("call_recovered", "recovered", function="app:hidden")
    finally:
        logger.setLevel(level)
    assert not any("app:hidden" in key for key in limiter.kept)
