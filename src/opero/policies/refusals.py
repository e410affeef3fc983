"""What is said of invalid options: a `ConfigError` with a problem for each, and hints for names of nothing here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from opero.errors import ConfigError, Problem, closest, described, nearest, readable

if TYPE_CHECKING:
    from collections.abc import Mapping

M = TypeVar("M", bound=BaseModel)

ELSEWHERE = {
    **dict.fromkeys(
        ("attempts", "max_attempts", "max_tries", "tries", "stop"), "retries, the attempts after the first"
    ),
    **dict.fromkeys(("delay", "wait", "base_delay", "initial_delay", "interval"), "min_delay and backoff_factor"),
    **dict.fromkeys(("exceptions", "on", "retry_exceptions", "expected_exception"), "retry_on"),
    **dict.fromkeys(("max_workers", "n_jobs", "processes", "concurrency"), "workers"),
    **dict.fromkeys(("chunk_size", "chunksize"), "no such option: opero chooses how many items it sends at once"),
    **dict.fromkeys(("fail_max", "failure_threshold"), "circuit_breaker={'consecutive_failures': …}"),
    **dict.fromkeys(("reset_timeout", "recovery_timeout"), "circuit_breaker={'open_for': …}"),
}
"""Options of other libraries → what does their work here."""


def hint(name: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """Return a hint for an unknown name: where it belongs, else the known one that it misspells, else what is known.

    Args:
        name: the unknown name.
        known: the names that are valid there.
        elsewhere: other ways to set an option of that name.
    """
    known, ways = list(known), " or ".join(elsewhere)
    if ways:
        return f"; use {ways}"
    if name in ELSEWHERE and closest(name, known) is None:
        return f"; use {ELSEWHERE[name]}"
    return nearest(name, known)


def refusal(
    error: ValidationError, names: Mapping[tuple[Any, ...], str] | None = None, *, partial: bool = False
) -> ConfigError:
    """Return a `ConfigError` that says what pydantic's error says, without values that may be secret.

    Args:
        error: the error.
        names: path of a value → the name by which it was given, for flat options.
        partial: whether fields may be missing.
    """
    texts: dict[str, None] = {}
    for each in error.errors(include_url=False):
        path = tuple(each["loc"])
        if partial and each["type"] == "missing":
            continue
        name = (names or {}).get(path[:2]) or ".".join(map(str, path))
        text = str(each["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        value = each["input"]
        if text.startswith("Input should") and (type(value) in (int, float, bool) or each["type"] == "literal_error"):
            text = text.replace("Input", described(value, 60), 1)
        texts[f"{name}: {text}" if name else text] = None
    problems = [Problem("", readable(each)) for each in texts]
    if len(problems) == 1:
        return ConfigError(problems[0].text, problems)
    return ConfigError(
        "\n  ".join([f"{len(problems)} options are invalid:", *(each.text for each in problems)]), problems
    )


def made(model: type[M], data: Any, names: Mapping[tuple[Any, ...], str] | None = None) -> M:
    """Return a model of data in any form.

    Args:
        model: a policy, or another model.
        data: its fields.
        names: as for `refusal`.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        refused = refusal(error, names)
    raise refused  # outside of the handler: pydantic's error may show values
