"""What the decorators of tenacity mean."""

from __future__ import annotations

import libcst as cst

from opero.migrate.delays import Delays, NotTranslatableError, constant, exponential
from opero.migrate.reading import Reader, Translation, alternatives, code_of
from opero.migrate.translating import applied, called, complete, refuse

RETRY_ERROR = "when all attempts fail, AllFailedError is raised instead of tenacity.RetryError"


def of_tenacity(reader: Reader, node: cst.BaseExpression, is_async: bool) -> Translation:
    """Translate `tenacity.retry(...)`."""
    given = reader.arguments(node, ())
    refuse([*given], ("stop", "wait", "retry", "reraise"))
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
    complete(translation, attempts, delays)
    translation.retry["reraise"] = reraise
    return translation


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
                number = reader.attempts(called(reader, part, ("max_attempt_number",)).get("max_attempt_number"))
                attempts.extend([] if number is None else [number])
            elif name in ("stop_after_delay", "stop_before_delay"):
                seconds = reader.seconds(called(reader, part, ("max_delay",)).get("max_delay"))
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
        called(reader, node, [str(position) for position in range(len(node.args))])
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
    given = called(reader, node, parameters)

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
            judge = cst.parse_expression(f"lambda result: not {applied(judge, 'result')}")
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
