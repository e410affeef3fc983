"""Items in worker processes: joblib's loky pool, kept between maps.

A worker gets the function as (module, qualified name) and unwraps it there; by value only where that name does not lead
back to it, as for locals and `__main__`. Retry, timeout and fallback run beside the function, in the worker.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
from joblib.externals.loky import ProcessPoolExecutor

from opero.binding import Binding
from opero.calling import calling
from opero.errors import ConfigError
from opero.executors.call import Outcome
from opero.parallel.window import Chunk, run_chunk, run_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor, Future

    from opero.policies.policy import Policy

__all__ = ["Rest", "map_in_processes"]

IDLE_SECONDS = 60

_pools: dict[int, Any] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Rest:
    """The arguments around the one that takes the item."""

    before: tuple[Any, ...]
    after: tuple[Any, ...]
    kwargs: dict[str, Any]


def map_in_processes(
    binding: Binding,
    policy: Policy,
    rest: Rest,
    items: Sequence[Any],
    workers: int,
    *,
    argument: Callable[[Any], Any],
    keep_going: bool,
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of the function for every item with its index, as they come.

    Args:
        binding: the function; what its workers count is added to its counts.
        policy: what runs around the function in the worker.
        rest: the arguments that all calls have in common. They are sent pickled once, and each worker keeps them.
        items: what to work on.
        workers: processes.
        argument: what the call for an item gets.
        keep_going: go on after a failed item.

    Raises:
        ConfigError: the function or its arguments do not pickle; nothing has been sent then.
    """
    _pickled((reference := _reference(binding.function), policy), f"{binding.name} or its policy")
    task = _pickled((reference, policy, rest, keep_going), f"the arguments of {binding.name}")
    if items:
        _pickled(argument(items[0]), f"the arguments of {binding.name}")

    def pool() -> Executor:
        with _lock:
            held = _pools.get(workers)
            if held is None or held._flags.broken or held._flags.shutdown:
                held = _pools[workers] = ProcessPoolExecutor(workers, timeout=IDLE_SECONDS)
            return held  # type: ignore[no-any-return]

    def submit(executor: Executor, chunk: Chunk) -> Future[bytes]:
        calls: list[Any] = [argument(item) for item in chunk]
        try:
            payload = cloudpickle.dumps(calls)
        except Exception:  # noqa: BLE001  # one of them does not pickle: it alone fails
            payload = cloudpickle.dumps([_Unsendable.unless_sendable(call, binding.name) for call in calls])
        return executor.submit(_work, task, payload)

    def unpack(result: bytes) -> tuple[list[Outcome], float]:
        outcomes, seconds, counts = pickle.loads(result)  # from our own worker
        binding.stats.add(counts)
        return outcomes, seconds

    try:
        yield from run_window(pool, submit, items, workers, keep_going=keep_going, unpack=unpack)
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C, or nobody reads on: nobody waits for what still runs
            _end_pool(workers)
        raise


def _end_pool(workers: int) -> None:
    """Kill the workers of a pool. Other maps that use it go on with a new one."""
    with _lock:
        held = _pools.pop(workers, None)
    if held is not None:
        held.shutdown(wait=False, kill_workers=True)


def _pickled(value: Any, what: str) -> bytes:
    try:
        return cloudpickle.dumps(value)  # type: ignore[no-any-return]
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be sent to a worker process: {error}; use mode='thread' or make it picklable"
        ) from error


class _Unsendable:
    """Stands for the arguments of a call that do not pickle."""

    def __init__(self, message: str) -> None:
        self.message = message

    @classmethod
    def unless_sendable(cls, call: Any, name: str) -> Any:
        """The call, or what stands for it."""
        try:
            _pickled(call, f"the arguments of {name}")
        except ConfigError as error:
            return cls(str(error))
        return call


def _faithful(error: Exception) -> Exception:
    """An exception that arrives as itself in another process, its traceback as a note; or one that says as much."""
    error.add_note("".join(["In the worker process:\n", *traceback.format_exception(error)]).rstrip())
    try:
        copy = pickle.loads(cloudpickle.dumps(error))
        if type(copy) is type(error):
            return error
    except Exception:  # noqa: BLE001  # its constructor takes other arguments, or it holds what does not pickle
        pass
    stand_in = RuntimeError(f"{type(error).__name__}: {error}")
    stand_in.__notes__ = list(error.__notes__)
    return stand_in


def _reference(function: Callable[..., Any]) -> Any:
    """How a worker finds the function: its module and name where they lead back to it, else the function itself."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module and module != "__main__" and "<" not in name and _find(module, name) is function:
        return module, name
    return function


def _find(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    bound = getattr(found, "binding", None)
    return bound.function if bound is not None else found


# In the worker

MOST_TASKS = 8

_tasks: dict[bytes, tuple[Binding, Callable[[Any], Any], bool]] = {}
"""What this worker has been set up for, by the bytes that say so; the last few."""


def _set_up(task: bytes) -> tuple[Binding, Callable[[Any], Any], bool]:
    """The binding, what runs an item under it, and whether to go on after a failed one."""
    if task not in _tasks:
        reference, policy, rest, keep_going = cloudpickle.loads(task)
        function = _find(*reference) if isinstance(reference, tuple) else reference
        binding = Binding(function, policy)
        call = calling(binding)

        def run(argument: Any) -> Any:
            if isinstance(argument, _Unsendable):
                raise ConfigError(argument.message)
            return call(*rest.before, argument, *rest.after, **rest.kwargs)

        while len(_tasks) >= MOST_TASKS:
            del _tasks[next(iter(_tasks))]
        _tasks[task] = binding, run, keep_going
    return _tasks[task]


def _work(task: bytes, payload: bytes) -> bytes:
    """Run a chunk: what became of its items, the seconds it took, and what the function's binding counted."""
    binding, run, keep_going = _set_up(task)
    outcomes, seconds = run_chunk(run, cloudpickle.loads(payload), keep_going)
    for outcome in outcomes:
        if outcome.error is not None:
            outcome.error = _faithful(outcome.error)
    counts = binding.stats.drain()
    try:
        return cloudpickle.dumps((outcomes, seconds, counts))  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001  # one of them does not pickle: find it
        return cloudpickle.dumps(([_sendable(each) for each in outcomes], seconds, counts))  # type: ignore[no-any-return]


def _sendable(outcome: Outcome) -> Outcome:
    """The outcome, or one that says why it could not be sent back."""
    try:
        cloudpickle.dumps(outcome)
    except Exception as error:  # noqa: BLE001  # it is told to the caller
        return Outcome(
            error=TypeError(f"the result {outcome.value!r:.200} cannot be sent back from a worker process: {error}")
        )
    return outcome
