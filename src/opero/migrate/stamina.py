"""What the decorators of stamina mean."""

from __future__ import annotations

import libcst as cst

from opero.migrate.delays import NotTranslatableError, exponential
from opero.migrate.reading import Reader, Translation, code_of
from opero.migrate.translating import NOT_A_CALL, complete, refuse

HOOKS = "stamina's hooks, set_active and set_testing have no effect; opero has logs, OPERO_ENABLED and fixtures"
STAMINA = ("on", "attempts", "timeout", "wait_initial", "wait_max", "wait_jitter", "wait_exp_base")


def of_stamina(reader: Reader, node: cst.BaseExpression, is_async: bool) -> Translation:
    """Translate `stamina.retry(on=...)`."""
    given = reader.arguments(node, ())
    refuse([*given], STAMINA)
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
    translation.differences.append(HOOKS)
    complete(translation, reader.attempts(given.get("attempts"), 10), exponential(first, base, longest, jitter))
    translation.retry["reraise"] = True
    return translation
