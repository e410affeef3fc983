"""The layer of a function that picks the executor of each attempt, by the key of a keyed scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opero.errors import describe
from opero.executors.scope_keys import unsuitable
from opero.runtime.generators import Started

if TYPE_CHECKING:
    from opero.executors.by_key import ByKey, Entry
    from opero.executors.call import Call, Layer
    from opero.executors.scope_keys import KeyOf


class Scoped:
    """The layer of one function that picks the executor of each attempt, by its arguments.

    Args:
        by_key: the executors.
        key_of: returns the key of a call.
        is_stream: whether the function is a generator.
        around: returns what wraps the function's layers in an executor. Default: the executor itself.

    Attributes:
        limiter: the executors, which functions share.
    """

    def __init__(
        self, by_key: ByKey, key_of: KeyOf, *, is_stream: bool = False, around: Callable[[Any], Any] | None = None
    ) -> None:
        self.limiter = by_key
        self.key_of = key_of
        self.is_stream = is_stream
        self.around: Callable[[Any], Any] = around or _itself

    def refusal(self, key: Any, error: TypeError) -> Exception:
        """The error for a key that the table of keys has refused; that itself, if the key is not the reason."""
        try:
            hash(key)
        except TypeError:
            return unsuitable(key, self.limiter.name, self.limiter.by)
        return error

    def before(self, call: Call, executor: Any) -> None:
        """An attempt with an executor begins, and one before it has failed."""

    def after(self, call: Call, executor: Any, error: Exception) -> None:
        """An attempt with an executor has failed."""

    def give_back(self, call: Call, executor: Any) -> None:
        """An attempt has been interrupted: give back what a layer was kept from giving back (see `abandon`)."""
        abandon = getattr(executor, "abandon", None)
        if abandon is not None:
            abandon(call)

    # Between counting a call and `try`, and where it is counted no more, Python runs no signal handler (`state.slots`).

    def wrap(self, layer: Layer, *args: Any, **options: Any) -> Layer:
        """Return the layer, with the arguments that the `wrap` of an executor of this kind takes."""
        me, key_of, position, find = object(), self.key_of.make, self.key_of.position, self.limiter.find
        get, touch, is_stream = self.limiter.live.get, self.limiter.live.move_to_end, self.is_stream

        def build(entry: Entry) -> Layer:
            made: Layer = self.around(entry.executor).wrap(layer, *args, **options)
            return entry.layers.setdefault(me, made)

        def scoped(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            key = args[position] if position < len(args) else key_of(args, kwargs)
            while True:
                try:
                    entry = get(key) or find(key)
                except TypeError as error:
                    raise self.refusal(key, error) from None
                entry.calls += 1
                if not entry.is_out:
                    break
                entry.calls -= 1
            try:
                try:  # noqa: SIM105  # `suppress` takes longer
                    touch(key)
                except KeyError:  # it has moved to the executors of another policy
                    pass
                inner = entry.layers.get(me) or build(entry)
                if call.counted_by is not None:
                    self.before(call, entry.executor)
                result = inner(call, args, kwargs)
                if is_stream and type(result) is Started:
                    _keep(entry, result)
                return result
            except Exception as error:
                self.after(call, entry.executor, error)
                raise
            except BaseException:
                self.give_back(call, entry.executor)
                raise
            finally:
                entry.calls -= 1

        return scoped

    def wrap_async(self, layer: Layer, *args: Any, **options: Any) -> Layer:
        """Return the layer around an async function."""
        me, key_of, position, find = object(), self.key_of.make, self.key_of.position, self.limiter.find
        get, touch, is_stream = self.limiter.live.get, self.limiter.live.move_to_end, self.is_stream

        def build(entry: Entry) -> Layer:
            made: Layer = self.around(entry.executor).wrap_async(layer, *args, **options)
            return entry.layers.setdefault(me, made)

        async def scoped(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            key = args[position] if position < len(args) else key_of(args, kwargs)
            while True:
                try:
                    entry = get(key) or find(key)
                except TypeError as error:
                    raise self.refusal(key, error) from None
                entry.calls += 1
                if not entry.is_out:
                    break
                entry.calls -= 1
            try:
                try:  # noqa: SIM105  # `suppress` takes longer
                    touch(key)
                except KeyError:  # it has moved to the executors of another policy
                    pass
                inner = entry.layers.get(me) or build(entry)
                if call.counted_by is not None:
                    self.before(call, entry.executor)
                result = await inner(call, args, kwargs)
                if is_stream and type(result) is Started:
                    _keep(entry, result)
                return result
            except Exception as error:
                self.after(call, entry.executor, error)
                raise
            except BaseException:
                self.give_back(call, entry.executor)
                raise
            finally:
                entry.calls -= 1

        return scoped


def _itself(executor: Any) -> Any:
    return executor


def _keep(entry: Entry, stream: Started) -> None:
    """Count a generator as a call until it ends."""
    if stream.ended:
        return
    is_kept = False

    def end(_: object) -> None:
        nonlocal is_kept
        if is_kept:
            is_kept = False
            entry.calls -= 1

    stream.on_end(end)
    entry.calls += 1
    is_kept = True


class ScopedBreaker(Scoped):
    """The same for circuit breakers, which count a call and not its attempts.

    The attempts of a call may have different keys, such as where the key is the fallback value. Then the call counts
    once for each of them, by its latest attempt with that key.
    """

    def is_closed_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """As of a circuit breaker, for the key of these arguments."""
        with self.limiter.using(self.key_of.make(args, kwargs)) as breaker:
            return bool(breaker.is_closed_for(args, kwargs))

    def before(self, call: Call, executor: Any) -> None:
        if call.counted_by is executor:
            return
        before, unsettled = call.counted_by, call.unsettled
        if unsettled is not None:
            unsettled.fail(call)
        if call.counted is not None:
            call.counted_before = {**(call.counted_before or {}), before: call.counted}
        call.counted = None if call.counted_before is None else call.counted_before.get(executor)
        call.counted_by = executor

    def abandon(self, call: Call) -> None:
        """Count nothing for a call that was interrupted while the layer above counted a round of its attempts."""
        if call.unsettled is not None:
            call.unsettled.abandon(call)

    def after(self, call: Call, executor: Any, error: Exception) -> None:
        call.counted_by = executor
        if call.unsettled is not None:
            call.unsettled.trouble = describe(error, 200)
