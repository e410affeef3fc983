"""What the decorators of tenacity, stamina and backoff mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import libcst as cst

from opero.migrate.delays import Delays, NotTranslatableError, constant, exponential, fit, retries_within
from opero.migrate.reading import Reader, Translation, alternatives, code_of

TIME_IS_UP = (
    "a wait that would end after the time limit is not begun: CallTimeoutError is raised, whose cause is the last "
    "exception"
)
RETRY_ERROR = "when all attempts fail, AllFailedError is raised instead of tenacity.RetryError"

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


def _refuse(given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise NotTranslatableError(
                f"{name} has no equal in a profile" + (f"; {CURES[name]}" if name in CURES else "")
            )


def _complete(translation: Translation, attempts: int | None, delays: Delays) -> Translation:
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


# tenacity

TENACITY = ("sleep", "stop", "wait", "retry", "before", "after", "before_sleep", "reraise")


def of_tenacity(reader: Reader, node: cst.BaseExpression, is_async: bool) -> Translation:
    """Translate `tenacity.retry(...)`."""
    given = reader.arguments(node, ())
    _refuse([*given], ("stop", "wait", "retry", "reraise"))
    translation = Translation()
    attempts = _stop(reader, given.get("stop"), translation)
    judges = _tenacity_conditions(reader, given.get("retry"), translation)
    reraise = bool(reader.value(given.get("reraise"), False))
    if judges == {"result"}:
        reraise = False  # tenacity then raises RetryError anyway
    elif judges == {"exception", "result"} and reraise:
        raise NotTranslatableError(
            "with reraise=True, a profile would return the last rejected result; tenacity raises"
        )
    if not reraise:
        if attempts == 1:
            raise NotTranslatableError("tenacity raises RetryError after its only attempt, opero the exception itself")
        translation.differences.append(RETRY_ERROR)
    wait = given.get("wait")
    delays = constant(0) if wait is None else _tenacity_wait(reader, wait)
    _complete(translation, attempts, delays)
    translation.retry["reraise"] = reraise
    return translation


def _called(reader: Reader, node: cst.BaseExpression, parameters: Sequence[str]) -> dict[str, cst.BaseExpression]:
    given = reader.arguments(node, parameters)
    _refuse([*given], parameters)
    return given


def _tenacity_name(reader: Reader, node: cst.BaseExpression) -> str:
    name = reader.imported(node.func if isinstance(node, cst.Call) else node, "tenacity")
    if name is None:
        raise NotTranslatableError(f"{code_of(node)} is not written with objects of tenacity here")
    return name


def _stop(reader: Reader, node: cst.BaseExpression | None, translation: Translation) -> int | None:
    """Return the number of attempts, and set the total timeout."""
    attempts: list[int] = []
    totals: list[float] = []

    def add(each: cst.BaseExpression) -> None:
        for part in alternatives(each, cst.BitOr):
            name = _tenacity_name(reader, part)
            if name == "stop_any" and isinstance(part, cst.Call):
                for argument in part.args:
                    add(argument.value)
            elif name == "stop_after_attempt":
                number = reader.attempts(_called(reader, part, ("max_attempt_number",)).get("max_attempt_number"))
                attempts.extend([] if number is None else [number])
            elif name in ("stop_after_delay", "stop_before_delay"):
                seconds = reader.seconds(_called(reader, part, ("max_delay",)).get("max_delay"))
                totals.extend([] if seconds is None else [seconds])
            elif name != "stop_never":
                raise NotTranslatableError(f"{code_of(part)} has no equal in a profile")

    if node is not None:
        add(node)
    translation.total = min(totals, default=None)
    return min(attempts, default=None)


def _tenacity_wait(reader: Reader, node: cst.BaseExpression) -> Delays:
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Add):
        return _tenacity_wait(reader, node.left).plus(_tenacity_wait(reader, node.right))
    name = _tenacity_name(reader, node)
    if not isinstance(node, cst.Call):
        raise NotTranslatableError(f"{code_of(node)} is not called here")
    if name in ("wait_combine", "wait_chain"):
        _called(reader, node, [str(position) for position in range(len(node.args))])
        parts = [_tenacity_wait(reader, each.value) for each in node.args]
        if not parts:
            return constant(0)
        if name == "wait_chain":
            return Delays(lambda retry: parts[min(retry, len(parts)) - 1].of(retry))
        total = parts[0]
        for each in parts[1:]:
            total = total.plus(each)
        return total
    parameters = {
        "wait_none": (),
        "wait_fixed": ("wait",),
        "wait_random": ("min", "max"),
        "wait_incrementing": ("start", "increment", "max"),
        "wait_exponential": ("multiplier", "max", "exp_base", "min"),
        "wait_random_exponential": ("multiplier", "max", "exp_base", "min"),
        "wait_full_jitter": ("multiplier", "max", "exp_base", "min"),
        "wait_exponential_jitter": ("initial", "max", "exp_base", "jitter", "min", "multiplier"),
    }.get(name)
    if parameters is None:
        raise NotTranslatableError(f"{name} has no equal in a profile")
    given = _called(reader, node, parameters)

    def number(parameter: str, default: float | None = None) -> float:
        return reader.seconds(given.get(parameter), default)  # type: ignore[return-value]  # has a default where needed

    if name == "wait_none":
        return constant(0)
    if name == "wait_fixed":
        return constant(number("wait", 0))
    if name == "wait_random":
        return Delays(lambda _: (number("min", 0), number("max", 1)))
    longest = reader.seconds(given.get("max"))
    if name == "wait_incrementing":
        start, step = number("start", 0), number("increment", 100)
        return Delays(
            lambda retry: ((each := max(0.0, min(start + step * (retry - 1), longest or 1e9))), each), longest
        )
    first = number("multiplier", 1) if "multiplier" in given else number("initial", 1)
    jitter = number("jitter", 1) if name == "wait_exponential_jitter" else 0.0
    full = name in ("wait_random_exponential", "wait_full_jitter")
    return exponential(first, number("exp_base", 2), longest, jitter, max(0.0, number("min", 0)), full=full)


def _tenacity_conditions(reader: Reader, node: cst.BaseExpression | None, translation: Translation) -> set[str]:
    """Set what is retried, and return what is judged: exceptions, results, or both."""
    if node is None:
        translation.conditions, translation.responses = ["Exception"], False
        return {"exception"}
    conditions: list[tuple[str, cst.BaseExpression]] = []

    def add(each: cst.BaseExpression) -> None:
        for part in alternatives(each, cst.BitOr):
            name = _tenacity_name(reader, part)
            given = reader.arguments(part, ("0",))
            if name == "retry_any" and isinstance(part, cst.Call):
                for argument in part.args:
                    add(argument.value)
            elif name == "retry_if_exception_type" and not given:
                conditions.append((name, cst.Name("Exception")))
            elif (
                name
                in (
                    "retry_if_exception_type",
                    "retry_if_not_exception_type",
                    "retry_if_exception",
                    "retry_if_result",
                    "retry_if_not_result",
                )
                and len(given) == 1
            ):
                conditions.append((name, next(iter(given.values()))))
            else:
                raise NotTranslatableError(f"{code_of(part)} has no equal in a profile")

    add(node)
    results = [each for each in conditions if each[0].endswith("result")]
    exceptions = [each for each in conditions if each not in results]
    if len(results) > 1:
        raise NotTranslatableError("it has several conditions on the result; make a function of them")
    if results:
        name, condition = results[0]
        judge = reader.condition(condition)
        if name == "retry_if_not_result":
            judge = cst.parse_expression(f"lambda result: not {_applied(judge, 'result')}")
        translation.code["retry_if_result"] = judge
        translation.conditions = []
    if len(exceptions) == 1 and exceptions[0][0] == "retry_if_exception_type":
        reader.classes(exceptions[0][1], translation)
        if "retry_on" in translation.code:
            translation.conditions = None
    elif exceptions:
        parts: list[cst.BaseExpression] = []
        for name, each in exceptions:
            if name == "retry_if_exception":
                parts.append(reader.condition(each))
            else:
                reader.classes(each, Translation())  # refuses what is not retried
                negation = "not " if name == "retry_if_not_exception_type" else ""
                parts.append(cst.parse_expression(f"lambda error: {negation}isinstance(error, {code_of(each)})"))
        translation.code["retry_on"] = parts[0] if len(parts) == 1 else cst.Tuple([cst.Element(each) for each in parts])
        translation.conditions, translation.responses = None, False
    return {kind for kind, found in (("exception", exceptions), ("result", results)) if found}


def _applied(function: cst.BaseExpression, argument: str) -> str:
    code = code_of(function)
    return f"({code})({argument})" if isinstance(function, cst.Lambda) else f"{code}({argument})"


# stamina

STAMINA = ("on", "attempts", "timeout", "wait_initial", "wait_max", "wait_jitter", "wait_exp_base")


def of_stamina(reader: Reader, node: cst.BaseExpression, is_async: bool) -> Translation:
    """Translate `stamina.retry(on=...)`."""
    given = reader.arguments(node, ())
    _refuse([*given], STAMINA)
    if "on" not in given:
        raise NotTranslatableError(NOT_A_CALL)
    translation = Translation(total=reader.seconds(given.get("timeout"), 45.0))
    on = given["on"]
    if isinstance(on, cst.Lambda):
        if not isinstance(on.body, cst.Comparison | cst.BooleanOperation | cst.UnaryOperation) and not (
            isinstance(on.body, cst.Call) and code_of(on.body.func) == "isinstance"
        ):
            raise NotTranslatableError(f"{code_of(on)} may return a delay, which retry_on does not take")
        translation.code["retry_on"], translation.responses = on, False
    elif isinstance(on, cst.Name) and reader.is_plain(on.value):
        raise NotTranslatableError(f"{on.value} may return a delay; if it returns a bool, use retry_on={on.value}")
    elif isinstance(on, cst.Name | cst.Attribute) and code_of(on).rpartition(".")[2][0].islower():
        raise NotTranslatableError(f"{code_of(on)} may be a function that returns a delay")
    else:
        reader.classes(on, translation)
    numbers = [
        reader.seconds(given.get(name), default)
        for name, default in (("wait_initial", 0.1), ("wait_exp_base", 2), ("wait_max", 5.0), ("wait_jitter", 1.0))
    ]
    first, base, longest, jitter = (each or 0.0 for each in numbers)
    _complete(translation, reader.attempts(given.get("attempts"), 10), exponential(first, base, longest, jitter))
    translation.retry["reraise"] = True
    return translation


# backoff

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
    _refuse([*given], known)
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
    _complete(translation, reader.attempts(given.get("max_tries")), delays)
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
    code = f"lambda error: isinstance(error, {code_of(classes)}) and not {_applied(give_up, 'error')}"
    translation.code["retry_on"] = cst.parse_expression(code)
    translation.conditions, translation.responses = None, False


TRANSLATORS: dict[str, dict[str, Callable[[Reader, cst.BaseExpression, bool], Translation]]] = {
    "tenacity": {"retry": of_tenacity},
    "stamina": {"retry": of_stamina},
    "backoff": {"on_exception": of_backoff, "on_predicate": of_backoff},
}
"""Library → name of a decorator → what translates it."""
OTHERS = {
    "tenacity": ("Retrying", "AsyncRetrying", "TornadoRetrying"),
    "stamina": (
        "retry_context",
        "RetryingCaller",
        "AsyncRetryingCaller",
        "BoundRetryingCaller",
        "BoundAsyncRetryingCaller",
    ),
    "backoff": (),
}
"""Library → what retries, but decorates nothing."""
