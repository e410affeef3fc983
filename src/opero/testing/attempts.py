"""Counts the attempts of a bound function within a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opero.binding.binding import Binding
from opero.errors import ConfigError
from opero.runtime.functions import short_name

SHOWN = ("calls", "retries", "fallbacks", "cache_hits", "rejections", "timeouts", "failures")


def binding_of(function: Any, by: str) -> Binding:
    """Return the binding of a bound function or method.

    Raises:
        ConfigError: it is not bound.
    """
    binding = getattr(function, "binding", None)
    if isinstance(binding, Binding):
        return binding
    name = short_name(function) if callable(function) else f"a value of type {type(function).__name__}"
    raise ConfigError(
        f"{by}() expects a bound function, and {name} is not bound; pass the one that @opero or bind() returns"
    )


@contextmanager
def assert_attempts(function: Callable[..., Any], count: int) -> Iterator[None]:
    """Assert that a bound function is executed a number of times within a block, retries included.

        with assert_attempts(fetch, 3):
            fetch()

    Args:
        function: a bound function or method. Attempts of all its callers and instances count.
        count: how many there must be.

    Raises:
        AssertionError: there were more or fewer; it says what the attempts came to.
        ConfigError: the function is not bound.
    """
    binding = binding_of(function, "assert_attempts")
    before = binding.stats.as_dict()
    yield
    after = binding.stats.as_dict()
    made = after["attempts"] - before["attempts"]
    if made == count:
        return
    counts = {name: after[name] - before[name] for name in SHOWN}
    counts |= {name: number - before["errors"].get(name, 0) for name, number in after["errors"].items()}
    details = ", ".join(f"{name.replace('_', ' ')}: {number}" for name, number in counts.items() if number)
    raise AssertionError(f"{binding.name}: expected {_times(count)}, made {made} ({details or 'no calls'})")


def _times(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"
