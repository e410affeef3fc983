"""Scripted and random faults: what the attempts of a bound function come to within a block."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from opero.dataclass import dataclass
from opero.errors import ConfigError
from opero.policies.quantities import parse_duration
from opero.runtime.forking import renew_in_child
from opero.testing.attempts import binding_of

if TYPE_CHECKING:
    from opero.binding.binding import Binding


class _Ok:
    def __repr__(self) -> str:
        return "ok"


ok = _Ok()
"""A step in which the real function is called."""


@dataclass(frozen=True)
class Response:
    """An HTTP response, as far as opero and most code look at one.

    Attributes:
        status_code: the status.
        headers: the headers.
        text: the body.
    """

    status_code: int
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    def json(self) -> Any:
        """Return the body, read as JSON."""
        import json

        return json.loads(self.text)

    def raise_for_status(self) -> None:
        """Raise an exception if the status is 400 or above.

        Raises:
            StatusError: it is.
        """
        if not self.ok:
            raise StatusError(self)


class StatusError(Exception):
    """A response with a status of 400 or above.

    Attributes:
        response: the response.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.response = response


def status(code: int, *, retry_after: float | None = None, headers: dict[str, str] | None = None) -> Response:
    """Return a step in which the attempt returns a response with this status.

    Args:
        code: the status.
        retry_after: seconds for the header Retry-After.
        headers: further headers.
    """
    try:
        phrase = HTTPStatus(code).phrase
    except ValueError:
        if type(code) is not int or not 100 <= code <= 599:
            raise ConfigError(f"status({code!r}): expected an HTTP status between 100 and 599") from None
        phrase = ""
    stated = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    return Response(code, {**stated, **(headers or {})}, phrase)


@dataclass(frozen=True)
class Later:
    """A step after some time.

    Attributes:
        seconds: the time, by the clock of the function.
        step: what the attempt does then.
        on_time: called before, if nothing has interrupted the attempt.
    """

    seconds: float
    step: Any = ok
    on_time: Callable[[], object] = int


def slow(duration: float | str) -> Any:
    """Return a step in which the attempt first takes some time, by the clock of the function, then calls the real one.

    Args:
        duration: seconds, or a text such as "2s".
    """
    try:
        return Later(parse_duration(duration))
    except ValueError as error:
        raise ConfigError(f"slow({duration!r}): {error}") from None


class Faults:
    """What happens to the attempts of a function.

    Attributes:
        attempts: how many there have been.
        remaining: the steps that no attempt has taken yet.
    """

    def __init__(self, name: str, steps: Sequence[Any], chance: Callable[[], Any] | None) -> None:
        self.attempts = 0
        self.remaining = list(steps)
        self._name = name
        self._chance = chance
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def step(self) -> Any:
        """Return what the next attempt does."""
        with self._lock:
            self.attempts += 1
            if self._chance is not None:
                return self._chance()
            return self.remaining.pop(0) if self.remaining else ok

    def __reduce__(self) -> Any:
        raise ConfigError(f"{self._name}: faults() do not reach other processes; use mode='thread'")

    def __repr__(self) -> str:
        return f"<faults of {self._name}: {self.attempts} attempts, {len(self.remaining)} steps remain>"


@contextmanager
def faults(
    function: Callable[..., Any],
    steps: Iterable[Any] = (),
    *,
    rate: float | None = None,
    seed: int = 0,
    errors: Sequence[Any] = (ConnectionError,),
) -> Iterator[Faults]:
    """Decide within a block what the attempts of a bound function come to; they pass all its policies as real ones do.

        with faults(fetch, [ConnectionError, status(503), slow("2s"), ok]) as script:
            fetch()
        assert script.attempts == 3

    Args:
        function: a bound function or method: sync, async, or a generator.
        steps: what each attempt does, one after the other: an exception or a class of exceptions is raised, `ok` calls
            the real function, `slow(duration)` does so later, and anything else is returned, such as `status(503)`;
            generators yield its items. After the last step the real function is called.
        rate: the share of attempts that fail, instead of steps.
        seed: of the random generator for `rate`. Equal seeds give equal faults in a single thread.
        errors: what these attempts do, each as likely; as in `steps`.

    Raises:
        ConfigError: the function is not bound, or the faults are invalid.
    """
    binding = binding_of(function, "faults")
    script = list(steps)
    chance: Callable[[], Any] | None = None
    if rate is not None:
        if script:
            raise ConfigError("faults(): expected either steps or rate, got both")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ConfigError(f"faults(): rate must be a number between 0 and 1, got {rate!r}")
        chosen = list(errors)
        if not chosen:
            raise ConfigError("faults(): errors is empty; name at least one exception")
        generator, share = random.Random(seed), rate

        def chance() -> Any:
            return generator.choice(chosen) if generator.random() < share else ok

    for each in script or errors:
        _check(each, binding)
    real = binding.function
    played = Faults(binding.name, script, chance)
    stand_in = stand_in_for(binding, played)
    binding.replace_function(stand_in)
    try:
        yield played
    finally:
        remove(binding, stand_in, real, "faults")


def remove(binding: Binding, stand_in: Callable[..., Any], real: Callable[..., Any], by: str) -> None:
    """Call the real function again.

    Raises:
        ConfigError: another block has replaced the stand-in, and has not ended yet.
    """
    if binding.function is not stand_in:
        raise ConfigError(f"{binding.name}: blocks of {by}() must end in the reverse order of their beginning")
    binding.replace_function(real)


def _check(step: Any, binding: Binding) -> None:
    if isinstance(step, type) and issubclass(step, BaseException):
        try:
            step()
        except TypeError as error:
            raise ConfigError(
                f"faults(): {step.__name__} cannot be raised without arguments ({error}); pass an instance of it"
            ) from None
    elif step is status or step is slow:
        raise ConfigError(f"faults(): {step.__name__} is a function; write {step.__name__}(…)")
    elif binding.target.is_stream and step is not ok and not isinstance(step, BaseException | Later | Iterable):
        raise ConfigError(
            f"faults(): {binding.name} is a generator, and {step!r:.80} has no items; pass a list of what it yields"
        )


class Steps(Protocol):
    """What attempts do, one after the other."""

    def step(self) -> Any:
        """Return what the next attempt does."""


def stand_in_for(binding: Binding, played: Steps) -> Callable[..., Any]:
    """Return a function of the same kind and parameters, which does what the script says."""
    real, kind = binding.function, binding.kind

    def settle(step: Any) -> Any:
        """Raise an exception, or return what the attempt returns."""
        if isinstance(step, type) and issubclass(step, BaseException):
            raise step()
        if isinstance(step, BaseException):
            raise step
        return step

    def on_time(later: Later) -> Any:
        later.on_time()
        return later.step

    def faulty(*args: Any, **kwargs: Any) -> Any:
        step = played.step()
        if isinstance(step, Later):
            binding.clock.sleep(step.seconds)
            step = on_time(step)
        return real(*args, **kwargs) if step is ok else settle(step)

    async def faulty_async(*args: Any, **kwargs: Any) -> Any:
        step = played.step()
        if isinstance(step, Later):
            await binding.clock.async_sleep(step.seconds)
            step = on_time(step)
        return await real(*args, **kwargs) if step is ok else settle(step)

    def faulty_generator(*args: Any, **kwargs: Any) -> Any:
        step = played.step()
        if isinstance(step, Later):
            binding.clock.sleep(step.seconds)
            step = on_time(step)
        return (yield from real(*args, **kwargs) if step is ok else settle(step))

    async def faulty_async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        step = played.step()
        if isinstance(step, Later):
            await binding.clock.async_sleep(step.seconds)
            step = on_time(step)
        if step is not ok:
            for item in settle(step):
                yield item
            return
        generator, item = real(*args, **kwargs), None
        try:
            item = await generator.asend(None)
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001  # anything can be thrown in
                    item = await generator.athrow(error)
                else:
                    item = await generator.asend(sent)
        except StopAsyncIteration:
            return
        finally:
            await generator.aclose()

    kinds: dict[str, Callable[..., Any]] = {
        "sync": faulty,
        "async": faulty_async,
        "generator": faulty_generator,
        "async_generator": faulty_async_generator,
    }
    return functools.wraps(real)(kinds[kind])
