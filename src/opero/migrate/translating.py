"""What the translators of all libraries share."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from opero.migrate.delays import Delays, NotTranslatableError, fit, retries_within
from opero.migrate.reading import Reader, Translation, code_of

TIME_IS_UP = (
    "a wait that would end after the time limit is not begun: CallTimeoutError is raised, whose cause is the last "
    "exception"
)

NOT_A_CALL = "it is not called"
CURES = {
    "after": "subscribe to the event attempt_failed",
    "before": "put it into the function",
    "before_sleep": "subscribe to the event retry_scheduled, or use the hook on_retry",
    "enabled": "use OPERO_ENABLED",
    "on_backoff": "use the hook on_retry",
    "on_giveup": "use the hook on_failure",
    "on_success": "use the hook on_success",
    "raise_on_giveup": "use a fallback",
    "retry_error_callback": "use a fallback",
    "retry_error_cls": "catch AllFailedError",
    "sleep": "use the fixtures of opero.testing",
}
"""Argument that a profile does not replace → what does."""


def refuse(given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise NotTranslatableError(
                f"{name} has no equal in a profile" + (f"; {CURES[name]}" if name in CURES else "")
            )


def complete(translation: Translation, attempts: int | None, delays: Delays) -> Translation:
    """Add the number of retries and the delays."""
    total = translation.total
    if attempts is None and total is None:
        raise NotTranslatableError("it never stops, and a profile has a number of retries; limit its attempts")
    retries = None if attempts is None else attempts - 1
    options, difference = fit(delays, delays.count_within(total or 0.0) if retries is None else retries)
    if difference:
        translation.differences.append(difference)
    if total is not None:
        if total <= 0:
            raise NotTranslatableError("its time limit is not positive")
        translation.differences.append(TIME_IS_UP)
        possible = retries_within(options, retries, total)
        if possible != retries and options["jitter"] == "full":
            translation.differences.append(f"there are at most {possible} retries, which take {total:g} s on average")
        retries = possible
    translation.retry = {"retries": retries, **options}
    return translation


def called(reader: Reader, node: cst.BaseExpression, parameters: Sequence[str]) -> dict[str, cst.BaseExpression]:
    given = reader.arguments(node, parameters)
    refuse([*given], parameters)
    return given


def applied(function: cst.BaseExpression, argument: str) -> str:
    code = code_of(function)
    return f"({code})({argument})" if isinstance(function, cst.Lambda) else f"{code}({argument})"
