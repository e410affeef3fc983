"""Opens the store that a cache policy asks for."""

from __future__ import annotations

import importlib.metadata
import sqlite3
import stat
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogpile.cache import make_region
from dogpile.cache.backends import _backend_loader
from dogpile.cache.exception import PluginNotFound

from opero.cache.memory import purge_in_background
from opero.cache.outage import StoreBreaker
from opero.cache.serializers import Codec
from opero.cache.settings import CacheSettings
from opero.cache.stores import MemoryStore, SharedStore
from opero.errors import ConfigError, MissingExtraError, describe, nearest
from opero.observe.logs import logger
from opero.policies.cache import IN_PROCESS, ON_THIS_MACHINE
from opero.policies.types import approximate_duration
from opero.runtime.clock import SYSTEM
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock

__all__ = ["check_store", "open_store"]

BUILT_IN = ("memory", "disk", "redis")


def open_store(policy: CachePolicy, clock: Clock, name: str) -> tuple[Any, MemoryStore | SharedStore]:
    """Open the dogpile.cache region that a policy asks for, and return it with its store.

    Args:
        policy: the cache policy.
        clock: the source of time.
        name: the function's name, `module.qualname`.

    Raises:
        ConfigError: the backend is unknown, or cannot be opened with these options.
        MissingExtraError: the backend needs an extra that is not installed.
    """
    kind = policy.backend.removeprefix("opero.")
    full_name = f"{policy.namespace}:{name}"
    # Plain memory needs no settings, and reading them takes as long as all the rest.
    settings = (
        CacheSettings.model_construct() if kind == "memory" and policy.serializer is None else CacheSettings.read()
    )
    codec = _codec(policy, settings, kind, full_name)
    if kind == "memory":
        region = make_region(name=full_name).configure(
            "opero.memory", arguments={"max_size": policy.max_size, "clock": clock.monotonic}
        )
        backend: Any = region.backend
        if clock is SYSTEM:
            purge_in_background(backend)
        return region, MemoryStore(backend, clock, codec)
    assert codec is not None
    store_name, arguments = _arguments(policy, settings, kind, full_name)
    region = _region(full_name, f"opero.{kind}" if kind in BUILT_IN else kind, arguments, store_name)
    limit = None if kind in BUILT_IN or kind in IN_PROCESS else _with_timeout(policy.store_timeout)
    store = SharedStore(
        region.backend,
        _breaker(store_name, clock, limit),
        policy.namespace,
        name,
        codec,
        clock,
        deletion_ttl=policy.lock_timeout,
        max_size=policy.max_size if kind == "disk" and "max_size" in policy.model_fields_set else None,
        has_mutex=kind != "dogpile.cache.dbm",  # dbm has one lock for all keys
    )
    return region, store


def check_store(policy: CachePolicy, name: str) -> None:
    """Check that a policy's store can be opened, without making a file or connecting to a server.

    Args:
        policy: the cache policy.
        name: what error messages begin with.

    Raises:
        ConfigError, MissingExtraError: as `open_store`.
    """
    kind = policy.backend.removeprefix("opero.")
    settings = CacheSettings.read()
    _codec(policy, settings, kind, name)
    if kind == "memory":
        return
    shown, arguments = _arguments(policy, settings, kind, name)
    if kind == "disk":
        _check_directory(arguments["directory"], name, shown)
    elif kind != "dogpile.cache.dbm":  # which makes its file at once
        _region(name, f"opero.{kind}" if kind in BUILT_IN else kind, arguments, shown)
    elif "filename" not in arguments:
        raise ConfigError(f"{name}: backend {kind!r} needs the name of its file: set arguments: {{filename: …}}")


def _check_directory(directory: Path, name: str, shown: str) -> None:
    """Check that a directory can be written to, or else be made."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name}: the cache's {shown} cannot be used: {error.strerror}; choose another cache_dir"
        ) from error


def _codec(policy: CachePolicy, settings: CacheSettings, kind: str, name: str) -> Codec | None:
    is_local = kind in ON_THIS_MACHINE
    secret = policy.secret or settings.secret
    serializer = policy.serializer
    if serializer is None:
        if kind == "memory":
            return None
        serializer = "pickle" if is_local else "json" if secret is None else "signed_pickle"
    may_unpickle = is_local or policy.allow_unsigned_pickle
    if serializer == "signed_pickle" and secret is None:
        raise ConfigError(
            f"{name}: cache.serializer 'signed_pickle' requires a signing key: set cache.secret or the environment "
            "variable OPERO_CACHE_SECRET"
        )
    reads = {serializer, "json"}
    if may_unpickle:
        reads.add("pickle")
    if secret is not None:
        reads.add("signed_pickle")
    return Codec(serializer, None if secret is None else secret.get_secret_value().encode(), reads)


def _arguments(policy: CachePolicy, settings: CacheSettings, kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return the store's name for messages, and the arguments for dogpile.cache."""
    if kind == "disk":
        directory = policy.cache_dir or settings.dir
        if directory is None:
            from platformdirs import user_cache_path

            directory = user_cache_path("opero", appauthor=False)
        directory = Path(directory).expanduser().absolute()
        if directory.is_dir() and directory.stat().st_mode & stat.S_IWOTH and policy.serializer in (None, "pickle"):
            logger.warning(
                "%s: cache directory %s is world-writable, and loading a pickle from it may run arbitrary code; use a "
                "private directory, or serializer 'signed_pickle' or 'json'",
                name,
                directory,
            )
        return f"disk at {directory}", {"directory": directory, "timeout": policy.store_timeout}
    if kind == "redis":
        url = policy.url or settings.redis_url
        address = "redis://" if url is None else url.get_secret_value()
        place = address.partition("://")[2].rpartition("@")[2].partition("?")[0] or "localhost:6379"
        return f"redis at {place}", {
            "url": address,
            "timeout": policy.store_timeout,
            "lock_timeout": policy.lock_timeout,
            "options": dict(policy.arguments or {}),
        }
    return f"dogpile backend {kind!r}", dict(policy.arguments or {})


def _region(name: str, backend: str, arguments: dict[str, Any], store_name: str) -> Any:
    try:
        return make_region(name=name).configure(backend, arguments=arguments)
    except PluginNotFound:
        known = [*BUILT_IN, *_backend_loader.impls, *getattr(_backend_loader, "_unloaded", ())]
        known += [each.name for each in importlib.metadata.entry_points(group="dogpile.cache")]
        known = [each for each in known if not each.startswith("opero.")]
        raise ConfigError(f"{name}: unknown cache backend {backend!r}{nearest(backend, known)}") from None
    except ImportError as error:
        if backend == "opero.redis":
            raise MissingExtraError(
                f"{name}: cache backend 'redis' requires an extra: pip install 'opero[redis]'"
            ) from error
        raise MissingExtraError(f"{name}: cache backend {backend!r} cannot be loaded: {error}") from error
    except ConfigError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{name}: cannot open cache store {store_name}: {error}; choose another cache_dir") from error
    except Exception as error:  # noqa: BLE001  # a third-party backend may raise anything
        reason = str(error) if backend.startswith("opero.") else describe(error)
        raise ConfigError(f"{name}: cannot open cache store {store_name}: {reason}") from None


def _with_timeout(seconds: float) -> Callable[..., Any]:
    """Return a function that runs an operation of a store without timeouts of its own, for at most `seconds`."""
    from opero.runtime.interruption import Expired, run_in_helper

    def limit(operation: Callable[..., Any], *args: Any) -> Any:
        try:
            return run_in_helper(seconds, operation, *args)
        except Expired:
            raise TimeoutError(f"no answer within {approximate_duration(seconds)}") from None

    return limit


_breakers: weakref.WeakValueDictionary[tuple[str, int], StoreBreaker] = weakref.WeakValueDictionary()
_breakers_lock = RenewedLock()


def _breaker(store_name: str, clock: Clock, limit: Callable[..., Any] | None) -> StoreBreaker:
    """Return the breaker that all functions with the same store share."""
    if store_name.startswith("dogpile"):
        return StoreBreaker(store_name, clock, limit)  # it is unknown which functions have the same store
    with _breakers_lock:
        key = (store_name, id(clock))
        breaker = _breakers.get(key)
        if breaker is None or breaker.clock is not clock:
            breaker = _breakers[key] = StoreBreaker(store_name, clock, limit)
        return breaker
