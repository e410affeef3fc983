"""Opens the stores that outlive the process, through dogpile.cache."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogpile.cache import make_region, register_backend
from dogpile.cache.backends import _backend_loader
from dogpile.cache.exception import PluginNotFound

from opero.cache.database import FILE, make_directory
from opero.cache.identity import Identity
from opero.cache.leases import LEASE
from opero.cache.outage import StoreBreaker
from opero.cache.serializers import Codec
from opero.cache.settings import CacheSettings
from opero.cache.shared_store import SharedStore
from opero.cache.typed import TypedValues, UnfitError
from opero.errors import ConfigError, MissingExtraError, describe, message_of, nearest
from opero.policies.cache import BUILT_IN, IN_PROCESS, LACKS_TTL, ON_THIS_MACHINE
from opero.policies.types import approximate_duration
from opero.runtime.forking import RenewedLock
from opero.runtime.functions import full_name
from opero.runtime.log import log
from opero.runtime.redis_address import place_of
from opero.runtime.trusted_paths import distrusted

if TYPE_CHECKING:
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock

for _name, _backend in (("memory", "MemoryBackend"), ("disk", "DiskBackend"), ("redis", "RedisBackend")):
    register_backend(f"opero.{_name}", f"opero.cache.{_name}", _backend)  # type: ignore[no-untyped-call]
NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a path at which there can be no directory, whatever becomes of the disk."""
UNUSABLE = "the cache's {shown} cannot be used: {why}; choose another cache_dir"


def open_shared(
    policy: CachePolicy, clock: Clock, function: Callable[..., Any], before: Identity | None = None
) -> SharedStore:
    """Open the store that a policy asks for, which is not in memory.

    Args, Raises: as for `opero.cache.open_store.open_store`.
    """
    kind = policy.backend.removeprefix("opero.")
    name = f"{policy.namespace}:{full_name(function)}"
    settings = CacheSettings.read()
    codec = codec_of(policy, settings, kind, name, function)
    assert codec is not None
    identity = Identity(function, policy, settings.app, on_network=kind not in ON_THIS_MACHINE)
    if before is not None and before.is_made_as(identity):
        identity = before
    store_name, arguments = _arguments(policy, settings, kind)
    if kind == "disk":
        _prepare_directory(arguments, name, codec, store_name)
    _check_places(kind, arguments, name, codec)
    region = _region(name, f"opero.{kind}" if kind in BUILT_IN else kind, arguments, store_name)
    _check_ttl(policy, name)
    limit = None if kind in BUILT_IN or kind in IN_PROCESS else _with_timeout(policy.store_timeout)
    return SharedStore(
        region.backend,
        _breaker(store_name, arguments, clock, limit),
        policy.namespace,
        identity,
        codec,
        clock,
        deletion_ttl=policy.lock_timeout,
        max_size=policy.max_size if kind == "disk" and "max_size" in policy.model_fields_set else None,
        has_mutex=kind != "dogpile.cache.dbm",  # dbm has one lock for all keys
    )


def check_shared(policy: CachePolicy, name: str) -> None:
    """Check that a policy's store can be opened, without making a file or connecting to a server.

    Args:
        policy: the cache policy.
        name: what error messages begin with.

    Raises:
        ConfigError, MissingExtraError: as `open_store`.
    """
    kind = policy.backend.removeprefix("opero.")
    settings = CacheSettings.read()
    codec = codec_of(policy, settings, kind, name)
    if kind == "memory":
        return
    shown, arguments = _arguments(policy, settings, kind)
    if kind == "disk":
        _check_directory(arguments["directory"], name, shown)
    _check_places(kind, arguments, name, codec)
    if kind == "dogpile.cache.dbm":  # which makes its file at once
        if "filename" not in arguments:
            raise ConfigError(f"{name}: backend {kind!r} needs the name of its file: set arguments: {{filename: …}}")
    elif kind != "disk":
        _region(name, f"opero.{kind}" if kind in BUILT_IN else kind, arguments, shown)
    _check_ttl(policy, name)


def _check_ttl(policy: CachePolicy, name: str) -> None:
    if policy.lacks_ttl:
        raise ConfigError(f"{name}: {LACKS_TTL.format(backend=policy.backend)}")


def _prepare_directory(arguments: dict[str, Any], name: str, codec: Codec, shown: str) -> None:
    """Make the directory of a disk store. If that fails for now, the store's first use makes it, and checks it then."""
    directory: Path = arguments["directory"]
    try:
        make_directory(directory)
    except OSError as error:
        if error.errno in NO_PLACE:
            raise ConfigError(f"{name}: {UNUSABLE.format(shown=shown, why=error.strerror)}") from error
        arguments["check"] = partial(_check_places, "disk", {"directory": directory}, name, codec)
    except ValueError as error:
        raise ConfigError(f"{name}: {UNUSABLE.format(shown=shown, why=message_of(error))}") from error


def _check_directory(directory: Path, name: str, shown: str) -> None:
    """Check that a directory can be written to, or else be made."""
    there = next(each for each in (directory, *directory.parents) if os.path.exists(each))
    try:
        if os.access(directory / FILE, os.R_OK):
            return  # a cache that was filled before it became read-only
        with suppress(FileNotFoundError):  # what is no path at all, as it is too long, for example, cannot be made
            os.stat(directory)
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or message_of(error)
        raise ConfigError(f"{name}: {UNUSABLE.format(shown=shown, why=why)}") from error


def codec_of(
    policy: CachePolicy, settings: CacheSettings, kind: str, name: str, function: Callable[..., Any] | None = None
) -> Codec | None:
    secret = policy.secret or settings.secret
    serializer: str | None = policy.serializer
    if serializer is None:
        if kind == "memory":
            return None
        unsigned = "pickle" if kind in ON_THIS_MACHINE else "json"
        serializer = unsigned if secret is None else "signed_pickle"
        if serializer == "json" and function is not None:
            with suppress(UnfitError):
                return Codec("typed", values=TypedValues(function))
    if serializer == "typed" and function is not None:
        return Codec(serializer, values=TypedValues.of(function, name))
    if serializer != "signed_pickle":
        return Codec(serializer)
    if secret is None:
        raise ConfigError(
            f"{name}: cache.serializer 'signed_pickle' requires a signing key: set cache.secret or the environment "
            "variable OPERO_CACHE_SECRET"
        )
    return Codec(serializer, secret.get_secret_value().encode("utf-8", "surrogatepass"))


def _check_places(kind: str, arguments: Mapping[str, Any], name: str, codec: Codec | None) -> None:
    """Check that no other user can write where a store's files are: else refuse pickles, and warn of the rest."""
    place, why = Path(arguments.get("directory") or arguments.get("filename") or ""), ""
    if kind == "disk":
        # Files that another user has put into our directory before it was closed to him stay his.
        why = distrusted(place, holds_files=True) or next(filter(None, map(distrusted, place.glob("opero.*"))), "")
    elif kind == "dogpile.cache.dbm":
        why = distrusted(place) or distrusted(place.parent, holds_files=True)
    if why and codec is not None and codec.serializer == "pickle":
        raise ConfigError(
            f"{name}: pickles in {place} could run the code of others, as {why}: use a directory of your own, "
            "serializer 'signed_pickle' with a secret, or 'json'"
        )
    if why:
        text = "%s: others can change what is cached in %s, as %s"
        log("cache_directory_unsafe", text, name, place, why, path=place)


def _arguments(policy: CachePolicy, settings: CacheSettings, kind: str) -> tuple[str, dict[str, Any]]:
    """Return the store's name for messages, and the arguments for dogpile.cache."""
    if kind == "disk":
        directory = policy.cache_dir or settings.dir
        if directory is None:
            from platformdirs import user_cache_path

            directory = user_cache_path("opero", appauthor=False)
        directory = Path(os.path.expanduser(directory)).absolute()
        return f"disk at {directory}", {"directory": directory, "timeout": policy.store_timeout}
    if kind == "redis":
        url = policy.url or settings.redis_url
        address = "redis://" if url is None else url.get_secret_value()
        return f"redis at {place_of(address)}", {
            "url": address,
            "timeout": policy.store_timeout,
            "lock_timeout": min(policy.lock_timeout, LEASE),
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
        raise MissingExtraError(f"{name}: cache backend {backend!r} cannot be loaded: {message_of(error)}") from error
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # a third-party backend may raise anything
        reason = message_of(error) if backend.startswith("opero.") else describe(error)
        raise ConfigError(f"{name}: cannot open cache store {store_name}: {reason}") from None


def _with_timeout(seconds: float) -> Callable[..., Any]:
    """Return a function that runs an operation of a store without timeouts of its own, for at most `seconds`."""
    from opero.runtime.helper_threads import run_in_helper
    from opero.runtime.interruption import Expired

    def limit(operation: Callable[..., Any], *args: Any) -> Any:
        try:
            return run_in_helper(seconds, operation, *args)
        except Expired:
            raise TimeoutError(f"no answer within {approximate_duration(seconds)}") from None

    return limit


_breakers: weakref.WeakValueDictionary[tuple[str, str, int], StoreBreaker] = weakref.WeakValueDictionary()
_breakers_lock = RenewedLock()


def forget_breakers() -> None:
    """Have caches that are opened from now on ask their stores again, even if these have failed."""
    with _breakers_lock:
        _breakers.clear()


def _breaker(
    store_name: str, arguments: Mapping[str, Any], clock: Clock, limit: Callable[..., Any] | None
) -> StoreBreaker:
    """Return the breaker that all functions with the same store, and the same way into it, share."""
    if store_name.startswith("dogpile"):
        return StoreBreaker(store_name, clock, limit)  # it is unknown which functions have the same store
    # With a wrong password, one function has no store; the others have.
    way = blake2b(f"{arguments.get('url')}\0{arguments.get('options')!r}".encode("utf-8", "surrogatepass")).hexdigest()
    with _breakers_lock:
        key = (store_name, way, id(clock))
        breaker = _breakers.get(key)
        if breaker is None or breaker.clock is not clock:
            breaker = _breakers[key] = StoreBreaker(store_name, clock, limit)
        return breaker
