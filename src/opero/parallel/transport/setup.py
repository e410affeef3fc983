"""What a worker needs before its first chunk: the function, its policy, the fixed arguments, the context."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from opero.dataclass import dataclass
from opero.parallel.transport.parcel import Packed
from opero.parallel.transport.pickling import pickled
from opero.parallel.transport.variables import Pickler

if TYPE_CHECKING:
    from opero.executors.state.sharing import SharedLimits
    from opero.parallel.engine.settings import FixedArguments
    from opero.parallel.transport.context import CallContext
    from opero.policies.policy import Policy

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs before its first chunk.

    Attributes:
        reference: the function, as returned by `reference`.
        policy: the layers that run around the function in the worker.
        fixed: the arguments that all calls share.
        position, batch: as in `BatchRule`.
        batch_size: items in one call; None: each call receives one item.
        has_cache: the map has a cache, so the worker reports which results came from a fallback.
        concurrency: concurrent calls of an async function.
        initializer: called once in each process before its first item; as returned by `reference`.
        context: context variables and log levels of the caller.
        limits: where the rate limit, circuit breaker and bulkhead keep their shared state.
        function, profile: the names of the function and its profile, for events.
    """

    reference: Any
    policy: Policy
    fixed: FixedArguments
    position: int
    batch: bool | None
    batch_size: int | None
    has_cache: bool
    concurrency: int = 1
    initializer: Any = None
    context: CallContext | None = None
    limits: SharedLimits | None = None
    function: str = ""
    profile: str = ""


def pickled_setup(setup: Setup, name: str) -> bytes:
    """Pickle a setup for workers that may be anywhere.

    Args:
        setup: the setup.
        name: the function's name, for messages.

    Raises:
        ConfigError: a part cannot be pickled.
    """
    return _pickled(Pickler.dumps, setup, name)


def packed_setup(setup: Setup, name: str) -> Packed:
    """As `pickled_setup`, for worker processes of this machine, which share what is large."""
    return _pickled(Packed, setup, name)


def _pickled(pickle: Callable[[Setup], Result], setup: Setup, name: str) -> Result:
    try:
        return pickle(setup)
    except Exception:
        _check_parts(setup, name)
        raise


def _check_parts(setup: Setup, name: str) -> None:
    """Pickle part by part, so that the error names the part."""
    pickled(setup.reference, name)
    pickled(setup.policy, f"the policy of {name}")
    names = _positional_parameters(setup.reference)
    after = len(setup.fixed.before) + 1
    for place, argument in chain(enumerate(setup.fixed.before), enumerate(setup.fixed.after, after)):
        label = f"{names[place]!r}" if place < len(names) else f"number {place}"
        pickled(argument, f"{label} of the arguments of {name}")
    for key, argument in (setup.fixed.kwargs or {}).items():
        pickled(argument, f"{key!r} of the arguments of {name}")
    if setup.initializer is not None:
        pickled(setup.initializer, f"the initializer of {name}")


def _positional_parameters(reference: Any) -> list[str]:
    try:
        parameters = inspect.signature(find(reference)).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def reference(function: Callable[..., Any]) -> Any:
    """How a worker finds a function: by module and name if they lead back to it, else by value."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module and module != "__main__" and "<" not in name:
        with suppress(ImportError):  # for example the namespace of a console, which is no module
            if _import(module, name) is function:
                return module, name
    return function


def find(reference: Any) -> Any:
    """The function that a `reference` stands for."""
    return _import(*reference) if isinstance(reference, tuple) else reference


def _import(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return getattr(getattr(found, "binding", None), "function", found)
