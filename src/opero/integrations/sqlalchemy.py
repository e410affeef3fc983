"""SQLAlchemy: `@transaction(Session, policy="db")` runs a function in a transaction, which is repeated as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from opero.binding.target import TRAITS, Traits
from opero.config.declaration import where
from opero.decorators import decorating
from opero.errors import ConfigError
from opero.runtime.functions import is_method, kind_of, short_name

if TYPE_CHECKING:
    from typing import Unpack

    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["transaction"]

P = ParamSpec("P")
R = TypeVar("R")

UNKNOWN = "its commit had begun, and whether it took effect is unknown"


class _Attempt:
    """One attempt at a transaction.

    Attributes:
        may_commit: emptied by whoever is first: the attempt, which then commits, or its caller, who then does not wait
            for it any more. Removing the element is atomic, so it needs no lock.
    """

    __slots__ = ("may_commit",)

    def __init__(self) -> None:
        self.may_commit = [True]

    def begin_commit(self) -> None:
        if not self.take():
            raise InvalidRequestError("the attempt at this transaction took too long: it is rolled back")

    def take(self) -> bool:
        try:
            return self.may_commit.pop()
        except IndexError:
            return False


_latest: ContextVar[list[_Attempt]] = ContextVar("opero_transaction")
"""The latest attempt of the call that runs, which the attempt may note in another thread."""


def transaction(
    source: Any,
    policy: str | Policy | None = None,
    *,
    registry: Registry | None = None,
    clock: Clock | None = None,
    **options: Unpack[Options],
) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[P, R]]:
    """Decorate a function that runs in a transaction under a policy. Each attempt has a session, and a transaction, of
    its own: the function receives the session first, and its callers pass the other arguments.

        @transaction(sessionmaker(engine), policy="db")
        def transfer(session, source, target, amount): ...

        transfer("ada", "bob", 10)

    If the function returns, the transaction is committed; if it raises, it is rolled back. So a lost connection, a
    deadlock or a serialization failure repeats all of it, from a new connection. It is not repeated where it may have
    taken effect: if the connection is lost, or time is up, during the commit. An attempt that goes on in the background
    after its timeout is rolled back.

    The function must not commit by itself; savepoints (`begin_nested`) are its own affair. What else it does, such as
    sending a mail, may happen several times. Objects that it returns are detached from the session.

    Args:
        source: a `sessionmaker` or an `Engine`; for async functions an `async_sessionmaker` or an `AsyncEngine`. With
            an engine, the function receives a connection.
        policy: the name of a profile, resolved at the first call, or a `Policy`. Without it, `retries` is 3 unless the
            options set it.
        registry, clock, **options: as for `@opero`.

    Raises:
        ConfigError: an argument is invalid, or the policy does not fit.
    """
    opening = source if callable(source) else getattr(source, "connect", None)
    if not callable(opening) or isinstance(source, type):
        raise ConfigError(
            "transaction() expects a sessionmaker or an Engine, or the async form of either, not "
            f"{source.__name__ if isinstance(source, type) else f'a value of type {type(source).__name__}'}"
        )
    decorate = decorating(policy, registry, clock, options, where(1))

    def decorated(function: Callable[Concatenate[Any, P], R]) -> Callable[P, R]:
        kind = kind_of(function)
        if "generator" in kind or is_method(function):
            what = "a generator function" if "generator" in kind else "a method, whose first argument is its instance"
            raise ConfigError(
                f"{short_name(function)} is {what}: transaction() needs a function that takes the session first, and "
                "returns when the transaction is to be committed"
            )
        attempt = _attempt_async(function, opening) if kind == "async" else _attempt(function, opening)
        functools.update_wrapper(attempt, function)
        del attempt.__wrapped__  # which has another signature
        setattr(attempt, TRAITS, Traits(why_once=_why_once))
        call: Callable[P, R] = _call(function, decorate(attempt), is_async=kind == "async")
        return call

    return decorated


def _attempt(function: Any, opening: Any) -> Any:
    def attempt(*args: Any, **kwargs: Any) -> Any:
        own = _latest.get()[0] = _Attempt()
        with opening() as session:
            _forbid_commits(session, own)
            result = function(session, *args, **kwargs)
            own.begin_commit()
            session.commit()
        return result

    return attempt


def _attempt_async(function: Any, opening: Any) -> Any:
    async def attempt(*args: Any, **kwargs: Any) -> Any:
        own = _latest.get()[0] = _Attempt()
        async with opening() as session:
            _forbid_commits(getattr(session, "sync_session", None) or session.sync_connection, own)
            result = await function(session, *args, **kwargs)
            own.begin_commit()
            await session.commit()
        return result

    return attempt


def _forbid_commits(session: Any, own: _Attempt) -> None:
    """Let the function not commit: a part that it has committed would be repeated with the rest."""

    def refuse(committing: Any) -> None:
        if own.may_commit and not committing.in_nested_transaction():
            raise InvalidRequestError(
                "a function under transaction() must not commit: the transaction is committed when it returns"
            )

    event.listen(session, "before_commit" if hasattr(session, "flush") else "commit", refuse)


def _why_once(error: Exception, *_: Any, **__: Any) -> str | None:
    if _latest.get()[0].take():
        return None  # it was not committed, and will not be
    is_answer = isinstance(error, DBAPIError) and not error.connection_invalidated
    return None if is_answer else UNKNOWN  # a database that answers a commit with an error has rolled back


def _call(function: Any, bound: Any, *, is_async: bool) -> Any:
    """Return what callers call: it notes the latest attempt, and gives it up if the call ends in an exception."""
    if is_async:

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            latest = [_Attempt()]
            token = _latest.set(latest)
            try:
                return await bound(*args, **kwargs)
            finally:
                latest[0].take()
                _latest.reset(token)

        call: Any = call_async
    else:

        def call_sync(*args: Any, **kwargs: Any) -> Any:
            latest = [_Attempt()]
            token = _latest.set(latest)
            try:
                return bound(*args, **kwargs)
            finally:
                latest[0].take()
                _latest.reset(token)

        call = call_sync
    functools.update_wrapper(call, function)
    call.bound = bound
    return call
