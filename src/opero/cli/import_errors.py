"""Problems in exceptions from importing a user's module, each with the line of code that causes it."""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb
from typing import Any

import opero
from opero.errors import ConfigError, Problem


def problems_in(error: BaseException) -> list[Problem]:
    """Return the problems that an exception reports, such as a decorator's invalid option or an unknown profile.

    The list is empty if the exception does not come from opero.
    """
    if isinstance(error, ConfigError):
        return [problem if problem.place else _at_code(error, problem.text) for problem in error.problems]
    return [_at_code(error, text) for text in validation_messages(error)] if _is_of_a_policy(error) else []


def validation_messages(error: Any) -> list[str]:
    """Return the messages of a pydantic `ValidationError`, without the values, which may be secret."""
    messages = []
    for each in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in each["loc"])
        text = str(each["msg"]).removeprefix("Value error, ")
        messages.append(f"{path}: {text}" if path else text)
    return list(dict.fromkeys(messages))


def _is_of_a_policy(error: BaseException) -> bool:
    from pydantic import ValidationError

    from opero.policies.policy import KINDS

    models = {"Policy", "AdaptiveTTL", "KeyedScope", *(each.__name__ for each in KINDS.values())}
    return isinstance(error, ValidationError) and error.title in models


def _at_code(error: BaseException, text: str) -> Problem:
    from opero.config.code_layer import source_at
    from opero.config.report import Report

    place = _line_of(error)
    report = Report()
    report.add(source_at(place or ("", 0), ""), text)
    (problem,) = report.problems
    return problem if place else problem._replace(place="")


def _line_of(error: BaseException) -> tuple[str, int] | None:
    """Return the file and number of the last line in the traceback that belongs to the user and calls opero."""
    found = None
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    frames = [each for each in frames if not each[0].startswith("<frozen")]  # importlib
    for (file, line), (called, _) in zip(frames, [*frames[1:], ("", 0)], strict=True):
        if not _is_internal(file) and (_is_internal(called) or not called):
            found = file, line
    return found


def _is_internal(file: str) -> bool:
    import pydantic

    return any(Path(file).is_relative_to(Path(str(each.__file__)).parent) for each in (opero, pydantic))
