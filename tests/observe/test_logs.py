"""Logging: nothing is shown by default, and each record once after configuration."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from opero import Policy, configure_logging
from opero.observe.logs import logger
from opero.runtime.log import log
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """Run each test with the loggers of a fresh process, and restore them afterwards."""
    root = logging.getLogger()
    handlers, root_handlers, level, root_level = logger.handlers[:], root.handlers[:], logger.level, root.level
    logger.handlers[:] = [each for each in handlers if isinstance(each, logging.NullHandler)]
    root.handlers[:] = []
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers[:], root.handlers[:] = handlers, root_handlers
    logger.setLevel(level)
    root.setLevel(root_level)


def fail_once() -> None:
    """Make a call with a retry, which is logged at DEBUG."""
    outcomes = [ValueError("no"), None]

    def flaky() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    Policy(retry=1).apply(flaky, clock=VirtualClock())()


def fail_in_two_lines() -> None:
    raise ValueError("one\ntwo")


def log_a_failure() -> None:
    try:
        fail_in_two_lines()
    except ValueError as error:
        log("reload_failed", "reloading failed", error=error, traceback=True)


def remove_pytest_handlers() -> None:
    """Remove the handlers that pytest adds when a test starts."""
    logging.getLogger().handlers.clear()


@pytest.mark.parametrize(
    ("level", "number"),
    [
        (logging.DEBUG, logging.DEBUG),
        (30, logging.WARNING),
        ("INFO", logging.INFO),
        ("debug", logging.DEBUG),
        (" Warning ", logging.WARNING),
        ("warn", logging.WARNING),
        ("15", 15),
    ],
)
def test_the_level_is_a_number_or_a_name(level: int | str, number: int) -> None:
    assert configure_logging(level) is logger
    assert logger.level == number


def test_the_level_is_info_by_default() -> None:
    assert configure_logging().level == logging.INFO


@pytest.mark.parametrize("wrong", ["DEBUGG", "", "loud", True, 1.5, -1])
def test_an_invalid_level_is_refused_and_changes_nothing(wrong: object) -> None:
    configure_logging("ERROR")
    with pytest.raises((ValueError, TypeError), match="level") as caught:
        configure_logging(wrong)  # type: ignore[arg-type]
    assert repr(wrong) in str(caught.value)
    assert logger.level == logging.ERROR
    if wrong == "DEBUGG":
        assert "did you mean 'DEBUG'" in str(caught.value)


def test_records_of_the_level_and_above_are_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging("INFO")
    logger.info("an info")
    logger.debug("a detail")
    shown = capsys.readouterr().err
    assert "INFO opero: an info" in shown
    assert "a detail" not in shown


def test_records_of_a_call_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging("DEBUG")
    fail_once()
    assert "flaky" in capsys.readouterr().err


def test_configuring_twice_shows_records_once(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging("INFO")
    configure_logging("WARNING")
    logger.warning("said once")
    assert capsys.readouterr().err.count("said once") == 1
    assert logger.level == logging.WARNING


def test_records_go_only_to_the_handlers_of_the_application_if_it_has_any(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    logging.basicConfig(format="app: %(message)s", level=logging.WARNING)
    configure_logging("INFO")
    logger.info("said once")
    assert capsys.readouterr().err == "app: said once\n"


def test_handlers_that_the_application_adds_later_receive_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging("INFO")
    logging.basicConfig(format="app: %(message)s")
    logger.info("said once")
    assert capsys.readouterr().err == "app: said once\n"


def test_a_handler_on_the_opero_logger_receives_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    own = logging.StreamHandler()
    own.setFormatter(logging.Formatter("own: %(message)s"))
    logger.addHandler(own)
    configure_logging("INFO")
    logger.info("said once")
    assert capsys.readouterr().err == "own: said once\n"


def test_records_go_to_the_current_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging("INFO")
    other = sys.stderr
    try:
        sys.stderr = sys.stdout
        logger.info("elsewhere")
    finally:
        sys.stderr = other
    assert "elsewhere" in capsys.readouterr().out


def test_nothing_is_shown_by_default() -> None:
    code = """
from opero import Policy
from opero.observe.logs import logger
from opero.testing import VirtualClock
attempts = []
def flaky():
    attempts.append(1)
    if len(attempts) < 3:
        raise ValueError
Policy(retry=3).apply(flaky, clock=VirtualClock())()
logger.error("not shown")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_line_of_text_ends_with_the_exception_and_its_places(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging()
    log_a_failure()
    (line,) = capsys.readouterr().err.splitlines()
    assert "ERROR opero: reloading failed: ValueError: one two (at " in line
    assert "in fail_in_two_lines, from " in line


def test_a_record_in_json_is_one_object_a_line_with_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging("DEBUG", format="json")
    fail_once()
    log_a_failure()
    retried, recovered, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert {name: retried[name] for name in ("level", "logger", "event", "attempt", "kind", "status", "error")} == {
        "level": "DEBUG",
        "logger": "opero",
        "event": "retry_scheduled",
        "attempt": 2,
        "kind": "unknown",
        "status": None,
        "error": "ValueError",
    }
    assert retried["function"].endswith("fail_once.<locals>.flaky")
    assert retried["delay"] > 0
    assert recovered["message"].endswith("flaky: succeeded after 1 failed attempts")
    assert recovered["attempts"] == 2
    assert failed["error_message"] == "one two"
    assert failed["traceback"].splitlines()[0] == "Traceback (most recent call last):"
    assert failed["time"].endswith("Z")
    assert failed["process"] == os.getpid()


def test_the_format_of_the_last_call_applies(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    configure_logging(format="json")
    configure_logging(format="text")
    logger.warning("as text")
    assert capsys.readouterr().err.endswith("WARNING opero: as text\n")


@pytest.mark.parametrize("wrong", ["jsno", "", "xml", 3, True])
def test_an_invalid_format_is_refused_and_changes_nothing(wrong: Any) -> None:
    configure_logging("ERROR")
    with pytest.raises(ValueError, match="invalid logging format") as caught:
        configure_logging("DEBUG", format=wrong)
    assert logger.level == logging.ERROR
    if wrong == "jsno":
        assert "did you mean 'json'" in str(caught.value)


def run(code: str, folder: Path, **variables: str) -> list[str]:
    """Run a program in a folder, and return the lines that it writes on stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPERO_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()


RETRY = """
from opero import opero
attempts = []
@opero(retries=1)
def flaky():
    attempts.append(1)
    if len(attempts) < 2:
        raise ConnectionError("reset")
flaky()
"""


def test_a_variable_alone_switches_logging_on(tmp_path: Path) -> None:
    retried, recovered = run(RETRY, tmp_path, OPERO_LOG_LEVEL="debug")
    assert "DEBUG opero: flaky: attempt 1 failed with ConnectionError('reset')" in retried
    assert "INFO opero: flaky: succeeded" in recovered
    (line,) = run(RETRY, tmp_path, OPERO_LOG_FORMAT="json")
    assert json.loads(line)["event"] == "call_recovered"
    assert run(RETRY, tmp_path) == []


def test_the_variables_may_be_in_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPERO_LOG_LEVEL=DEBUG\nOPERO_LOG_FORMAT=json\n")
    assert [json.loads(each)["level"] for each in run(RETRY, tmp_path)] == ["DEBUG", "INFO"]


def test_code_has_precedence_over_the_variables(tmp_path: Path) -> None:
    code = f"from opero import configure_logging\nconfigure_logging('INFO')\n{RETRY}"
    (line,) = run(code, tmp_path, OPERO_LOG_LEVEL="DEBUG", OPERO_LOG_FORMAT="json")
    assert json.loads(line)["level"] == "INFO"


def test_an_invalid_variable_is_a_warning_that_names_the_valid_values(tmp_path: Path) -> None:
    first, second, *others = run(RETRY, tmp_path, OPERO_LOG_LEVEL="loud", OPERO_LOG_FORMAT="xml")
    assert "WARNING opero: OPERO_LOG_LEVEL: 'loud' is invalid: use DEBUG, INFO, WARNING" in first
    assert "WARNING opero: OPERO_LOG_FORMAT: 'xml' is invalid: use text or json; text is used" in second
    assert len(others) == 1, "the level is INFO"


def test_the_variables_are_none_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "base.yaml").write_text("policies:\n  api:\n    retry: 3\n")
    code = "from opero import Registry\nRegistry.load()"
    assert run(code, tmp_path, OPERO_LOG_LEVEL="INFO", OPERO_LOG_FORMAT="text") == []


# structlog


@pytest.fixture
def structured() -> Iterator[list[dict[str, Any]]]:
    """What a configured structlog has received."""
    found: list[dict[str, Any]] = []

    def keep(_: Any, method: str, fields: dict[str, Any]) -> Any:
        found.append({**fields, "method": method})
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    yield found
    structlog.reset_defaults()


def test_records_go_to_structlog_where_the_application_has_configured_it(
    structured: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    fail_once()
    log_a_failure()
    retried, recovered, failed = structured
    assert (retried["event"], retried["method"], retried["attempt"]) == ("retry_scheduled", "debug", 2)
    assert "attempt 1 failed with ValueError('no')" in retried["message"]
    assert (recovered["event"], recovered["method"]) == ("call_recovered", "info")
    assert (failed["method"], type(failed["exc_info"])) == ("error", ValueError)
    assert caplog.records == [], "and to no other logger"


def test_a_level_that_was_configured_applies_to_structlog_as_well(structured: list[dict[str, Any]]) -> None:
    configure_logging("INFO")
    fail_once()
    assert [each["event"] for each in structured] == ["call_recovered"]


def test_the_level_of_structlog_applies(capsys: pytest.CaptureFixture[str]) -> None:
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    structlog.configure([structlog.processors.JSONRenderer()], wrapper_class=wrapper)
    try:
        fail_once()
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "call_recovered"


def test_a_processor_of_structlog_that_fails_harms_no_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="opero")

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    structlog.configure(processors=[broken])
    try:
        fail_once()
    finally:
        structlog.reset_defaults()
    assert [each.event for each in caplog.records] == ["call_recovered"]  # type: ignore[attr-defined]


def test_structlog_that_is_not_configured_receives_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="opero")
    fail_once()
    assert capsys.readouterr().out == ""
    assert len(caplog.records) == 1


def test_records_go_through_structlog_to_the_handlers_of_logging(capsys: pytest.CaptureFixture[str]) -> None:
    remove_pytest_handlers()
    logging.basicConfig(format="app: %(message)s", level=logging.INFO)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        configure_logging(level=logging.INFO)
        fail_once()
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line.removeprefix("app: "))["event"] == "call_recovered"


def test_records_of_worker_processes_have_their_fields_and_count_as_those_of_the_map(
    structured: list[dict[str, Any]],
) -> None:
    mapped = Policy(retry=1, parallel={"mode": "process", "workers": 2}).apply(fails_first)
    mapped.map(list(range(20)))  # type: ignore[attr-defined]
    recovered = [each for each in structured if each["event"] == "call_recovered"]
    assert len(recovered) == 1, "one line a minute, whichever process it is from"
    assert (recovered[0]["attempts"], recovered[0]["function"]) == (2, "observe.test_logs:fails_first")


_tried: set[int] = set()


def fails_first(number: int) -> int:
    """Fails for the first time that it is called with a number."""
    if number not in _tried:
        _tried.add(number)
        raise ConnectionError("reset")
    return number
