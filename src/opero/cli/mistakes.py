"""What modules do wrong with opero when they are imported, each mistake with the line of code that makes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import opero
from opero.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mistakes_in", "sentences"]


def mistakes_in(error: BaseException) -> list[Problem]:
    """The mistakes that an exception tells: a decorator's wrong options, what its function cannot do, a profile that
    does not exist. Nothing where it is no matter of opero's."""
    if isinstance(error, ConfigError):
        return [problem if problem.place else _at_code(error, problem.text) for problem in error.problems]
    return [_at_code(error, text) for text in sentences(error)] if _is_of_a_policy(error) else []


def sentences(error: Any) -> list[str]:
    """What pydantic found wrong with policies, a sentence each: without the values, which may be secret."""
    told = []
    for each in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in each["loc"])
        text = str(each["msg"]).removeprefix("Value error, ")
        told.append(f"{path}: {text}" if path else text)
    return list(dict.fromkeys(told))


def _is_of_a_policy(error: BaseException) -> bool:
    from pydantic import ValidationError

    from opero.policies.policy import KINDS

    models = {"Policy", "AdaptiveTTL", *(each.__name__ for each in KINDS.values())}
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
    """The last line of somebody else's that called opero, or a model of its own, on the way to the error."""
    found = None
    frames = list(_frames(error))
    for (file, line), (called, _) in zip(frames, [*frames[1:], ("", 0)], strict=True):
        if not _is_ours(file) and (_is_ours(called) or not called):
            found = file, line
    return found


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen"):  # the importer's
            yield file, trace.tb_lineno
        trace = trace.tb_next


def _is_ours(file: str) -> bool:
    import pydantic

    return any(Path(file).is_relative_to(Path(str(each.__file__)).parent) for each in (opero, pydantic))
