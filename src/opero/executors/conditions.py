"""Decides whether a policy means a failure: by its kind, its class, or a function of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opero.errors import describe
from opero.executors.classifier import BY_SHAPE, Classifier
from opero.failures.kinds import Kind
from opero.runtime.functions import full_name, is_async_function
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Answers
    from opero.policies.names import Condition


class Matcher:
    """Answers whether any of some conditions holds for an exception.

    Args:
        conditions: kinds of failure, exception classes, and functions that receive the exception.
        classifier: says of which kind an exception is. Default: by its shape.

    Attributes:
        classes: the exception classes among them.
    """

    __slots__ = ("_asked_here", "_functions", "_kind_of", "_kinds", "classes")

    @classmethod
    @functools.lru_cache(maxsize=128)
    def of(cls, conditions: tuple[Condition, ...], classifier: Classifier = BY_SHAPE) -> Matcher:
        """Return the matcher of these conditions, which all functions share."""
        return cls(conditions, classifier)

    def __init__(self, conditions: Sequence[Condition], classifier: Classifier = BY_SHAPE) -> None:
        self._kind_of = classifier.kind_of
        self.classes: tuple[type[Exception], ...] = tuple(each for each in conditions if isinstance(each, type))
        self._kinds = frozenset(each for each in conditions if isinstance(each, Kind))
        self._functions: tuple[Callable[[Exception], Any], ...] = tuple(
            [each for each in conditions if not isinstance(each, type | Kind)]
        )
        self._asked_here = tuple([each for each in self._functions if not is_async_function(each)])

    def __call__(self, error: Exception, answers: Answers | None = None, kind: Kind | None = None) -> bool:
        """Return whether a condition holds.

        Args:
            error: the exception.
            answers: what the async functions among the conditions have said about it. Without an answer it is no.
            kind: its kind, if that is known.
        """
        if not (self._kinds or self.classes or self._functions):
            return False
        kind = kind or self._kind_of(error)
        if kind in self._kinds:
            return True
        if kind is Kind.CONTROL:  # it passes through, whatever its class
            return False
        if self.classes and isinstance(error, self.classes):
            return True
        if answers is not None and any(answers.get(function, False) for function in self._functions):
            return True
        return bool(self._asked_here) and any(_holds(function, error) for function in self._asked_here)


def _holds(function: Callable[[Exception], Any], error: Exception) -> bool:
    """Return what the function says. If it fails itself, that is no: the exception of the call is what matters."""
    try:
        return bool(function(error))
    except Exception as own:  # noqa: BLE001  # a user's function may raise anything
        report_broken(function, own)
        return False


def report_broken(function: Callable[[Exception], Any], own: Exception) -> None:
    """Log that a function that decides about failures has failed itself."""
    name, text = full_name(function), "%s, which decides about failures, raised %s"
    log("condition_failed", text, name, describe(own), function=name, error=own)
