"""redis-py under a policy: `db = client(redis.Redis.from_url(url), policy="redis")`, and so for `redis.asyncio`."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import redis
import redis.asyncio

from opero.binding.target import TRAITS, Traits
from opero.config.declaration import where
from opero.decorators import decorating
from opero.errors import CallTimeoutError, ConfigError, OperoError, shortened
from opero.integrations.http_clients import for_caller, own_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["REPEATABLE", "client"]

C = TypeVar("C")

_OWN = own_errors(__name__, redis.TimeoutError, redis.ConnectionError)
globals().update({each.__name__: each for each in _OWN.values()})  # where pickles look for them

_WORDS = """
BITCOUNT BITFIELD_RO BITPOS DBSIZE DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO GEODIST GEOHASH GEOPOS
GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HRANDFIELD
HSCAN HSTRLEN HVALS INFO KEYS LCS LINDEX LLEN LPOS LRANGE MGET PEXPIRETIME PFCOUNT PING PTTL RANDOMKEY SCAN SCARD
SDIFF SINTER SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN STRLEN SUBSTR SUNION TIME TTL TYPE
XLEN XPENDING XRANGE XREAD XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER ZINTERCARD ZLEXCOUNT ZMSCORE ZRANDMEMBER ZRANGE
ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION EXPIREAT
HMSET LSET MSET PEXPIREAT PSETEX SELECT SET SETEX SETRANGE
"""
REPEATABLE = frozenset(_WORDS.split())
"""The commands that are repeated: those that only read, or set the same and reply the same each time. SET is not with
NX, XX, GET or another condition."""
_PLAIN = frozenset({"EX", "PX", "EXAT", "PXAT", "KEEPTTL"})
_BEFORE_SENDING = frozenset({"connect", "connect_check_health", "get_connection", "_connect"})
"""Functions of redis-py in which a call fails before anything of it is sent."""
_ATTRIBUTES = vars(redis.ConnectionError())
"""What exceptions of redis-py have besides."""
_under_policy: ContextVar[bool] = ContextVar("opero_redis_under_policy", default=False)


def client(
    made: C,
    policy: str | Policy | None = None,
    *,
    registry: Registry | None = None,
    retry_commands: Collection[str] = (),
    clock: Clock | None = None,
    **options: Unpack[Options],
) -> C:
    """Put a client of redis-py under a policy, and return it.

        db = client(redis.Redis.from_url(url), policy="redis")

    Each command is a call, and so is each execution of a pipeline or transaction. Their own retries are off. A command
    is repeated only if that is safe: if it reads, or sets the same each time (`REPEATABLE`), or nothing of it was sent,
    as the connection could not be made. A pipeline or transaction is repeated as a whole, if all of its commands may
    be; one that watches keys is not. What waits for messages (`pubsub`, `monitor`) is not under the policy, and
    reconnects as before.

    If all attempts raised exceptions, the last of them is raised, with a note about the others. What opero raises
    itself, such as `opero.CircuitOpenError`, is a `redis.ConnectionError` as well, and a timeout a
    `redis.TimeoutError`.

    Args:
        made: a `redis.Redis` or `redis.asyncio.Redis`, also one that `Sentinel` has made. It is changed. Those of a
            cluster are refused.
        policy: the name of a profile, resolved at the first command, or a `Policy`. Without it, `retries` is 3 unless
            the options set it.
        registry: the registry of the profile. Default: the default registry, at the first command.
        retry_commands: more commands that may be repeated, such as {"INCRBY", "HSET"}: the names
            that redis-py sends.
        clock: the source of time and randomness. Default: the system's.
        **options: flat options and policies, as of `@opero`, which lie over the profile.

    Returns:
        The client. Its attribute `bound` is the bound function, with `.stats`, `.policy` and so on.

    Raises:
        ConfigError: an argument is invalid, or the policy does not fit: it has a cache, for example.
    """
    connected: Any = made
    is_async = isinstance(made, redis.asyncio.Redis)
    if not isinstance(made, redis.Redis | redis.asyncio.Redis):
        text = f"client() expects a redis.Redis or a redis.asyncio.Redis, not a value of type {type(made).__name__}"
        is_cluster = "Cluster" in type(made).__name__
        raise ConfigError(f"{text}; a cluster retries by itself, as that follows redirects" if is_cluster else text)
    if "bound" in vars(connected):
        raise ConfigError("this client is under a policy already, and the retries of two would multiply")
    if isinstance(retry_commands, str) or not all(isinstance(each, str) for each in retry_commands):
        raise ConfigError(
            'retry_commands expects a collection of commands, such as {"HSET"}, not '
            f"{shortened(repr(retry_commands), 100)}"
        )
    repeatable = REPEATABLE | {each.upper() for each in retry_commands}

    def send(request: _Request) -> Any:
        token = _under_policy.set(True)
        try:
            return request.run()
        finally:
            _under_policy.reset(token)

    async def send_async(request: _Request) -> Any:
        token = _under_policy.set(True)
        try:
            return await request.run()
        finally:
            _under_policy.reset(token)

    sender: Any = send_async if is_async else send
    sender.__module__, sender.__qualname__ = __name__, "client"  # its name in `functions:`
    setattr(sender, TRAITS, Traits(_refusal, _why_once, why_alone=_why_alone))
    bound: Any = decorating(policy, registry, clock, options, where(1))(sender)
    if registry is not None:
        bound.binding.resolved()  # there is no reason to wait for the first command
    retry = connected.get_retry()
    if retry is not None:
        connected.set_retry(_only_outside(retry))
    call = _call_async if is_async else _call
    execute, pipeline = connected.execute_command, connected.pipeline

    def execute_command(*args: Any, **kwargs: Any) -> Any:
        return call(bound, _Request(partial(execute, *args, **kwargs), [args], repeatable, is_async=is_async))

    def policed(*args: Any, **kwargs: Any) -> Any:
        made = pipeline(*args, **kwargs)
        made.execute = partial(_execute, weakref.ref(made), partial(call, bound), repeatable, is_async)
        return made

    connected.execute_command, connected.pipeline, connected.bound = execute_command, policed, bound
    return made


class _Request:
    """A command, or the commands of a pipeline: what one call sends.

    Attributes:
        run: sends it, and returns the reply.
        commands: the commands with their arguments.
        is_pipeline: whether it is a pipeline, which two attempts cannot use at once.
        why_once: why it must not be repeated once it was sent; None if it may be.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        commands: list[Any],
        repeatable: frozenset[str],
        *,
        is_async: bool,
        is_pipeline: bool = False,
        watches: bool = False,
    ) -> None:
        self.run = run
        self.commands = commands
        self.is_async = is_async
        self.is_pipeline = is_pipeline
        self.watches = watches
        self._repeatable = repeatable

    @property
    def why_once(self) -> str | None:
        if self.watches:
            return "it watches keys, which its connection has done"
        for each in self.commands:
            name = str(each[0]).upper()
            if name not in self._repeatable:
                return f"{name} is not among the commands that may be repeated (retry_commands)"
            if name == "SET" and not _is_plain(each[3:]):
                return "SET with a condition is not repeated, as its reply tells what it found"
        return None


def _is_plain(options: Iterable[Any]) -> bool:
    texts = (each.decode() if isinstance(each, bytes) else str(each) for each in options)
    return all(each.upper() in _PLAIN or each.isdigit() for each in texts)


def _execute(
    reference: Any, call: Callable[[_Request], Any], repeatable: frozenset[str], is_async: bool, *args: Any, **kw: Any
) -> Any:
    """Execute a pipeline as one call."""
    pipeline = reference()
    stack, scripts, explicit = list(pipeline.command_stack), set(pipeline.scripts), pipeline.explicit_transaction
    watches = pipeline.watching

    def run() -> Any:
        if not watches:  # an attempt before this one has reset it
            pipeline.command_stack, pipeline.scripts = list(stack), set(scripts)
            pipeline.explicit_transaction = explicit
        return type(pipeline).execute(pipeline, *args, **kw)

    commands = [each[0] if isinstance(each, tuple) else each.args for each in stack]
    return call(_Request(run, commands, repeatable, is_async=is_async, is_pipeline=True, watches=watches))


def _only_outside(retry: Any) -> Any:
    """Return the retries of a client that are off under the policy: what waits for messages keeps them."""

    def retries(self: Any) -> int:
        return 0 if _under_policy.get() else int(vars(self)["_retries"])

    def change(self: Any, number: int) -> None:
        vars(self)["_retries"] = number

    kind: Any = type(type(retry).__name__, (type(retry),), {"_retries": property(retries, change)})
    made = kind.__new__(kind)
    vars(made).update(vars(retry))
    return made


def _call(bound: Any, request: _Request) -> Any:
    try:
        return bound(request)
    except OperoError as error:
        raised = for_caller(error, _OWN, **_ATTRIBUTES)
    try:
        raise raised
    finally:
        del raised


async def _call_async(bound: Any, request: _Request) -> Any:
    try:
        return await bound(request)
    except OperoError as error:
        raised = for_caller(error, _OWN, **_ATTRIBUTES)
    try:
        raise raised
    finally:
        del raised


def _why_once(error: Exception, request: _Request) -> str | None:
    if request.is_pipeline and not request.is_async and isinstance(error, CallTimeoutError):
        return "the attempt that timed out may still use the pipeline"
    if not request.watches and _is_unsent(error):
        return None
    return request.why_once


def _why_alone(request: _Request) -> str | None:
    return "two attempts cannot use a pipeline at once" if request.is_pipeline else request.why_once


def _is_unsent(error: Exception) -> bool:
    """Return whether nothing of a call was sent: redis-py failed to get a connection for it."""
    entry, names = error.__traceback__, []
    while entry is not None:
        if entry.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "redis":
            names.append(entry.tb_frame.f_code.co_name)
        entry = entry.tb_next
    # What follows `execute` directly is the connection that is made anew after a reply.
    return any(
        name in _BEFORE_SENDING
        and (place == 0 or name == "get_connection" or not names[place - 1].endswith("_command"))
        for place, name in enumerate(names)
    )


def _refusal(policy: Policy) -> str | None:
    """Return why a policy cannot be under a client, with the cure."""
    if policy.active("cache") is not None:
        return "replies of redis are not cached, as commands change what it has: add cache=False here"
    return None
