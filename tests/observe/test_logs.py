"""Logging: nothing is shown by default, and each record once after configuration."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from opero import Policy, configure_logging
from opero.observe.logs import logger
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """Run each test with the loggers of a fresh process, and restore them afterwards."""
    root = logging.getLogger()
    handlers, root_handlers, level, root_level = logger.handlers[:], root.handlers[:], logger.level, root.level
    logger.handlers[:] = [each for each in handlers if isinstance(each, logging.NullHandler)]
    root.handlers[:] = []
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


@pytest.mark.parametrize("wrong", ["DEBUGG", "", "loud", None, True, 1.5, -1])
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
