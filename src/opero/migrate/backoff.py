"""What the decorators of backoff mean."""

from __future__ import annotations

import libcst as cst

from opero.migrate.delays import Delays, NotTranslatableError, constant, exponential
from opero.migrate.reading import Reader, Translation, code_of
from opero.migrate.translating import NOT_A_CALL, applied, complete, refuse

LOGGER = "retries are logged by the logger opero, not by backoff's"
BACKOFF = ("max_tries", "max_time", "jitter", "logger", "backoff_log_level", "giveup_log_level")
WAITS = {"expo": ("base", "factor", "max_value"), "constant": ("interval",), "fibo": ("max_value",)}


def of_backoff(reader: Reader, node: cst.BaseExpression, is_async: bool) -> Translation:
    """Translate `backoff.on_exception(...)` or `backoff.on_predicate(...)`."""
    if not isinstance(node, cst.Call):
        raise NotTranslatableError(NOT_A_CALL)
    on_exception = reader.imported(node.func, "backoff") == "on_exception"
    judged = "exception" if on_exception else "predicate"
    given = reader.arguments(node, ("wait_gen", judged))
    wait = reader.imported(given["wait_gen"], "backoff") if "wait_gen" in given else None
    if wait not in WAITS:
        raise NotTranslatableError("its delays are made by a function of which a profile has no equal")
    known = ("wait_gen", judged, *BACKOFF, *WAITS[wait], *(("giveup",) if on_exception else ()))
    refuse([*given], known)
    translation = Translation(total=reader.seconds(given.get("max_time")))
    if on_exception:
        reader.classes(given["exception"], translation)
        if "giveup" in given:
            _give_up(reader, given["giveup"], given["exception"], translation, is_async)
    else:
        if translation.total is not None:
            raise NotTranslatableError("max_time ends in the last result, where a profile raises CallTimeoutError")
        judge = (
            reader.condition(given["predicate"])
            if judged in given
            else cst.parse_expression("lambda result: not result")
        )
        translation.code["retry_if_result"] = judge
        translation.conditions = []
    if "logger" not in given or code_of(given["logger"]) != "None":
        translation.differences.append(LOGGER)
    delays = _backoff_wait(reader, wait, given)
    jitter = given.get("jitter")
    name = "full_jitter" if jitter is None else reader.imported(jitter, "backoff") or code_of(jitter)
    if name == "full_jitter":
        exact = delays.of
        delays = Delays(lambda retry: (0.0, exact(retry)[1]), delays.longest, delays.factor)
    elif name == "random_jitter":
        delays = delays.plus(Delays(lambda _: (0.0, 1.0)))
    elif name != "None":
        raise NotTranslatableError(f"the jitter {name} has no equal in a profile")
    complete(translation, reader.attempts(given.get("max_tries")), delays)
    translation.retry["reraise"] = True
    return translation


def _backoff_wait(reader: Reader, wait: str, given: dict[str, cst.BaseExpression]) -> Delays:
    if wait == "constant":
        return constant(reader.number(given.get("interval"), 1) or 0.0)
    longest = reader.number(given.get("max_value"))
    if wait == "expo":
        first, base = (reader.number(given.get(name), default) or 0.0 for name, default in (("factor", 1), ("base", 2)))
        return exponential(first, base, longest)

    def fibonacci(retry: int) -> tuple[float, float]:
        one, two = 1.0, 1.0
        for _ in range(retry - 1):
            one, two = two, one + two
        each = one if longest is None else min(one, longest)
        return each, each

    return Delays(fibonacci, longest)


def _give_up(
    reader: Reader, node: cst.BaseExpression, classes: cst.BaseExpression, translation: Translation, is_async: bool
) -> None:
    give_up = reader.condition(node)
    if is_async and not isinstance(give_up, cst.Lambda) and not reader.is_plain(code_of(give_up)):
        raise NotTranslatableError(
            f"{code_of(give_up)} may be async, which the retry_on that would replace it cannot be"
        )
    code = f"lambda error: isinstance(error, {code_of(classes)}) and not {applied(give_up, 'error')}"
    translation.code["retry_on"] = cst.parse_expression(code)
    translation.conditions, translation.responses = None, False
