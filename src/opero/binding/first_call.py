"""The first call of a function: it finds the pipeline, and a sync function's result is checked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

from opero.binding.invocation import Pipeline
from opero.binding.observed import ended, observed_async, run, settle, timed
from opero.policies.policy import Policy
from opero.runtime.tracebacks import trim

if TYPE_CHECKING:
    from opero.binding.invocation import Entry
    from opero.executors.call import Call
    from opero.observe.stats import Stats


class Resolver(Protocol):
    """Finds the pipeline of a function when it is first needed."""

    @property
    def stats(self) -> Stats: ...
    @property
    def is_async(self) -> bool: ...
    @property
    def entry(self) -> Entry | None: ...
    def resolved(self) -> Pipeline: ...
    def begin_check(self) -> Pipeline: ...
    def check_again(self) -> None: ...
    def accept(self, result: Any) -> None: ...


def first(resolver: Resolver, pipeline: Pipeline) -> Pipeline:
    """Build a pipeline for the first call of a sync function, whose result is checked; it runs on another pipeline."""
    return replace(
        pipeline, function=MethodType(_call_and_check, resolver), hit=None, check=None, fail=reraise, is_resolved=False
    )


def _call_and_check(resolver: Resolver, /, *args: Any, **kwargs: Any) -> Any:
    pipeline = resolver.begin_check()
    call = timed(pipeline)
    try:
        result = run(pipeline, call, args, kwargs)
        resolver.accept(result)
        return ended(call, result)
    except BaseException:
        resolver.check_again()
        raise
    finally:
        settle(call)


def reraise(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Call | None) -> Any:
    """Raise an exception that has been handled on another pipeline already."""
    try:
        raise error
    except Exception:
        trim(error)
        raise
    finally:
        del error


def unresolved(resolver: Resolver, before: Pipeline | None) -> Pipeline:
    """Build a pipeline whose first call resolves the real one, and runs on that from beginning to end.

    Args:
        resolver: finds the real pipeline.
        before: the pipeline whose state is to continue, or None.
    """
    return _Unresolved(resolver, before)  # type: ignore[return-value]


NOTHING: Mapping[str, Any] = {}
NONE: frozenset[str] = frozenset()


class _Unresolved:
    """A pipeline whose calls resolve the real one. It is small, as most functions are bound and never called."""

    __slots__ = ("canary", "executors", "own", "resolver")

    hit = check = classifier = hooks = None
    is_exact = True  # the real one may be
    is_resolved = False

    def __init__(self, resolver: Resolver, before: Pipeline | None) -> None:
        self.resolver = resolver
        self.executors = NOTHING if before is None else before.executors
        self.own = NONE if before is None else before.own
        self.canary = None if before is None else before.canary

    @property
    def function(self) -> Any:
        return MethodType(_resolve_and_call_async if self.resolver.is_async else _resolve_and_call, self.resolver)

    layer = whole = function  # never called, as there is a function

    @property
    def stats(self) -> Stats:
        return self.resolver.stats

    @property
    def policy(self) -> Policy:
        return _no_policy()

    @property
    def profile(self) -> str:
        return self.resolver.stats.policy

    fail = staticmethod(reraise)
    start, checked, stream_failed, cache = Pipeline.start, Pipeline.checked, Pipeline.stream_failed, Pipeline.cache


def _resolve_and_call(resolver: Resolver, /, *args: Any, **kwargs: Any) -> Any:
    pipeline, entry = resolver.resolved(), resolver.entry
    resolver.stats.executed += pipeline.function is not None  # this call began before calls counted as attempts
    if entry is not None and entry.is_direct:  # it refuses wrong arguments, as it will in later calls
        resolver.stats.count_calls(-1)  # it counts this one again
        return entry.function(*args, **kwargs)
    return _call_and_check(resolver, *args, **kwargs)


async def _resolve_and_call_async(resolver: Resolver, /, *args: Any, **kwargs: Any) -> Any:
    pipeline, entry = resolver.resolved(), resolver.entry
    resolver.stats.executed += pipeline.function is not None  # as above
    if entry is not None and entry.is_direct:
        resolver.stats.count_calls(-1)
        return await entry.function(*args, **kwargs)
    return await observed_async(resolver.begin_check(), args, kwargs)  # which may choose between two


@functools.cache
def _no_policy() -> Policy:
    return Policy()
