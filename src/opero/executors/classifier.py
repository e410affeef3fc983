"""Says of which kind failures are: as a policy states, or else by their shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.errors import describe
from opero.failures import Failure, Kind, failure_of, kind_of, status_of
from opero.runtime.functions import full_name, short_name
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.policies.failures import FailurePolicy


class Classifier:
    """Classifies exceptions.

    Args:
        policy: what is stated about them; None leaves everything to their shape.

    Attributes:
        kind_of: returns the kind of an exception.
        failure_of: returns what is known of an exception; see `opero.failures.failure_of`.
    """

    kind_of: Callable[[BaseException], Kind]
    failure_of: Callable[..., Failure]

    @classmethod
    @functools.lru_cache(maxsize=128)
    def of(cls, policy: FailurePolicy | None) -> Classifier:
        """Return the classifier of a policy, which all functions share."""
        return cls(policy)

    def __init__(self, policy: FailurePolicy | None = None) -> None:
        self.kind_of = kind_of
        self.failure_of = failure_of
        stated = {} if policy is None else policy.stated()
        self._classes = {each: kind for each, kind in stated.items() if isinstance(each, type)}
        self._statuses = {each: kind for each, kind in stated.items() if not isinstance(each, type)}
        self._classify = None if policy is None else policy.classify
        if stated or self._classify is not None:
            rule = self._stated
            self.failure_of = lambda error, now=None: failure_of(error, now, rule)
            self.kind_of = lambda error: self.failure_of(error).kind

    def _stated(self, error: BaseException) -> Failure | None:
        """Return the failure that an exception is by the policy's statements; None if they do not concern it."""
        status = status_of(error)
        if self._classify is not None:
            kind = _asked(self._classify, error)
            if kind is not None:
                return Failure(kind, status, f"{short_name(self._classify)} says {kind.value}")
        if status is not None:
            for each in (status, f"{status // 100}xx"):
                if each in self._statuses:
                    return Failure(self._statuses[each], status, f"HTTP {status}, stated in failures")
        for base in type(error).__mro__ if self._classes else ():
            if base in self._classes:
                return Failure(self._classes[base], status, f"{base.__name__}, stated in failures")
        return None


def _asked(classify: Callable[..., Any], error: BaseException) -> Kind | None:
    """Return the kind that the user's function says. If it fails itself, it has nothing to say."""
    try:
        kind = classify(error)
        return None if kind is None else Kind(kind)
    except Exception as own:  # noqa: BLE001  # a user's function may raise anything
        name, text = full_name(classify), "failures.classify: %s raised %s"
        log("classify_failed", text, name, describe(own), function=name, error=own)
        return None


BY_SHAPE = Classifier()
"""Leaves everything to the shape."""
