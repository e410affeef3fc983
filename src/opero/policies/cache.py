"""The cache policy: which results to keep, where, and for how long."""

from collections.abc import Callable, Collection, Mapping
from os import PathLike, fspath
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.errors import message_of
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.base import BasePolicy, masked
from opero.policies.json_text import NotJSONError, parse_json
from opero.policies.lists import each_of
from opero.policies.names import (
    IMPORT_TEXT,
    NAME_SCHEMA,
    ConditionsOrFlag,
    Function,
    FunctionOfResult,
    check_call,
    check_callable,
    import_path,
    resolve,
)
from opero.policies.quantities import (
    SPACE,
    PositiveCount,
    PositiveDuration,
    Ratio,
    fits,
    format_duration,
    is_usual_duration,
    named_schema,
    parse_duration,
    quoted,
)
from opero.policies.secrets import Secret, hidden_error
from opero.policies.types import Flag, one_of

if TYPE_CHECKING:
    from opero.policies.names import ConditionsLike
    from opero.policies.quantities import DurationLike

BUILT_IN = ("memory", "disk", "redis")
IN_PROCESS = ("dogpile.cache.memory", "dogpile.cache.memory_pickle", "dogpile.cache.null")
ON_THIS_MACHINE = ("disk", "memory", *IN_PROCESS, "dogpile.cache.dbm")
PICKLING_CLIENTS = tuple(
    f"dogpile.cache.{each}" for each in ("memcached", "pylibmc", "bmemcached", "pymemcache", "memcached_pool")
)
"""Their client libraries unpickle whatever the server marks as a pickle, before it can be verified."""


LACKS_TTL = (
    "the store of backend {backend!r} outlives the process, so without a ttl its results would be served forever; set "
    "ttl (such as 1h), or ttl: null to keep them until they are deleted"
)

JSON_TEXT = rf"^{SPACE}\{{"


def _time_to_live(value: Any) -> Any:
    if callable(value):
        check_call(value)
        return value
    if value is None or isinstance(value, AdaptiveTTL):
        return value
    is_duration = is_usual_duration(value)
    if not is_duration and fits(JSON_TEXT, value):  # an environment variable
        try:
            value = parse_json(value)
        except NotJSONError as error:
            raise ValueError(f"{quoted(value)} is not valid JSON: {message_of(error)}") from None
    if isinstance(value, Mapping):
        return AdaptiveTTL.model_validate(value)
    if value == "adaptive":
        return AdaptiveTTL()
    if not is_duration and fits(IMPORT_TEXT, value):
        found = resolve(value.strip())
        check_callable(found, value)
        check_call(found)
        return found
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"a ttl of {seconds:g} s is invalid: use a value > 0")
    return seconds


def _written(ttl: Any) -> Any:
    if isinstance(ttl, AdaptiveTTL):
        return ttl.model_dump(mode="json")
    return import_path(ttl) if callable(ttl) else ttl


TimeToLive = Annotated[
    Any,
    BeforeValidator(
        _time_to_live,
        json_schema_input_type=PositiveDuration
        | Literal["adaptive"]
        | Annotated[str, WithJsonSchema({"title": "ImportPath", "type": "string", "pattern": IMPORT_TEXT})]
        | Annotated[str, WithJsonSchema({"type": "string", "pattern": JSON_TEXT})]
        | AdaptiveTTL
        | None,
    ),
    PlainSerializer(_written, when_used="json"),
]


def _tag(tag: Any) -> str:
    """Check that a tag is a template for `str.format`."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(tag) if name is not None]
    except ValueError as error:
        raise ValueError(f"{quoted(tag)} is not a tag: {message_of(error)}; use {{{{ for a literal brace") from None
    if not tag or any(not name.partition(".")[0].partition("[")[0].isidentifier() for name in fields):
        raise ValueError(
            f"{quoted(tag)} is not a tag: braces must contain the name of a parameter, such as {{user_id}}"
        )
    return str(tag)


def _tags(value: Any) -> Any:
    """Validate tags; a single one needs no list."""
    each = (value,) if isinstance(value, str) else value
    if not isinstance(each, list | tuple | set | frozenset) or not all(isinstance(tag, str) for tag in each):
        raise ValueError(f"{quoted(value)} is not a list of tags: use text, such as [users, 'user:{{user_id}}']")
    return (_tag(value),) if isinstance(value, str) else tuple(each_of(each, _tag))


Tags = Annotated[
    tuple[str, ...],
    BeforeValidator(_tags),
    named_schema("Tags", [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA}], ["users", "user:{user_id}"]),
]


def _directory(value: Any) -> Any:
    if isinstance(value, str | PathLike) and str(value):
        return fspath(value)
    raise ValueError(f"{quoted(value)} is not the path of a directory")


Directory = Annotated[str, BeforeValidator(_directory), WithJsonSchema(NAME_SCHEMA)]


WHITE = " \t\r\n"
_TEXT_SCHEMA = {"type": "string", "pattern": r"[^ \t\r\n]"}


def _version(value: Any) -> Any:
    """Also accept a number, as YAML reads `version: 2`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and (not isinstance(value, str) or not value.strip(WHITE)):
        raise ValueError(f"{quoted(value)} is not a version: use text or a number, such as 2 or '2026-11'")
    return str(value).strip(WHITE)


Version = Annotated[
    str,
    BeforeValidator(_version),
    named_schema("Version", [_TEXT_SCHEMA, {"type": "number"}], 2, "2026-11"),
]


def _app(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip(WHITE):
        raise ValueError(f"{quoted(value)} is not the name of a program: use text, such as billing")
    return value.strip(WHITE)


App = Annotated[str, BeforeValidator(_app), WithJsonSchema(_TEXT_SCHEMA)]


def _ignored(value: Any) -> Any:
    """Validate the names of parameters; a single one needs no list."""
    each = (value,) if isinstance(value, str) else value
    if not isinstance(each, list | tuple | set | frozenset):
        raise ValueError(f"{quoted(value)} is not a list of parameters: use names, such as [session]")
    return tuple(each_of(each, _parameter))


def _parameter(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{quoted(name)} is not the name of a parameter")
    return name


Ignored = Annotated[
    tuple[str, ...],
    BeforeValidator(_ignored),
    named_schema("Parameters", [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA}], ["session"]),
]


def _arguments(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        kind = type(value).__name__
        raise hidden_error("arguments", "arguments must be a mapping, not {kind}", {"kind": kind})
    return handler(value)


Arguments = Annotated[
    Mapping[str, Any],
    WrapValidator(_arguments),
    PlainSerializer(masked, when_used="json"),
    WithJsonSchema({"type": "object"}),
]


Serializer = Literal["typed", "json", "pickle", "signed_pickle"]


class CachePolicy(BasePolicy):
    """Cache results by the call's arguments.

    Short forms: `cache: 30m` means `cache: {ttl: 30m}`; `cache: true` uses the defaults; `cache: false` disables it.

    Attributes:
        ttl: how long a result is served; seconds, text such as "30m", an `AdaptiveTTL` (in YAML its fields, or
            "adaptive"), or a function without arguments that is called whenever a result is stored and returns seconds
            or text; 0 means not to store it (in YAML "module:function"). Default None: until it is evicted. Stores that
            outlive the process have no default; there None has to be written.
        backend: "memory", "disk", "redis" (requires that extra), or the name of any registered dogpile.cache
            backend, with its `arguments`. Default "memory".
        key: a function of the call's arguments that returns the key. Default: the arguments, normalized by the
            function's signature.
        ignore: the names of parameters that are not part of the key, such as a session or a logger: calls that differ
            only in them share a result. Default: none.
        namespace: the first part of the cache region's name, which is `namespace:module.qualname`. Default "opero".
        app: the name of the program whose results these are in a store that outlives the process: programs with the
            same name share the results of functions with the same module and name. Default: environment variable
            `OPERO_CACHE_APP`, else the path of the function's file, and the name of its project.
        version: a number or text to change when the function returns something else for the same arguments: results of
            another version are not used. Default: none.
        follow_code: whether results are used only by the code that has computed them: the function's, and that of
            functions, classes and constants in the same file that it refers to. Scripts, notebooks, lambdas and local
            functions always do. Default false.
        max_size: the maximum number of results in `memory`; the least recently used is evicted first. For `disk` it
            applies only if set, and the oldest is evicted first. Default 1000.
        stale_ttl: how long after `ttl` a stale result may still be served while it is refreshed in the background, or
            when refreshing fails; seconds or text. Default None: not at all.
        early_refresh: how long before the end of `ttl` a hit refreshes the result in the background; seconds or text.
            Default None: not at all.
        ttl_jitter: the largest share of `ttl` to subtract at random, so that results stored together do not expire
            together; 0 to 1. Default 0.
        cache_if: a function of the result, which is kept if it returns a true value. Default None: keep all.
        errors: which exceptions to cache, too, and to raise again: kinds of failure, exception classes, and functions
            that receive the exception, as for `retry_on`; true for all. Default false: none. Rejections, such as by an
            open circuit, failed responses, and the results of a fallback are never cached.
        error_ttl: how long an exception is kept; seconds or text. Default None: as long as a result.
        share_errors: whether concurrent calls share the failure of the one that computes their key, or the fallback
            result in its place. If not, they try one at a time, until one succeeds. Default true.
        tags: names of groups of results, for `clear_cache(tags=...)`; "user:{user_id}" is formatted with the call's
            arguments. Default: none.
        serializer: how stores serialize values: "typed" (JSON, which comes back as the return annotation says), "json"
            (lossless, or an error), "pickle" or "signed_pickle". What another one has written is not read. Default:
            "signed_pickle" if there is a secret, else "pickle" on disk, and in network stores "typed" where the
            function's return annotation says what to expect, else "json". `memory` keeps the objects themselves, or
            copies made by a serializer if one is set.
        secret: the key that signs pickles, and the journals of maps. Default: environment variable
            `OPERO_CACHE_SECRET`.
        allow_unsigned_pickle: allow serializer "pickle" in a network store, and clients that unpickle by themselves:
            anyone who can write there can then run code in this process. Default false.
        url: the URL of `redis`: "redis://[[user]:password@]host[:port][/db]",
            "redis+sentinel://[[user]:password@]host[:port],…/service[/db]" or
            "redis+cluster://[[user]:password@]host[:port],…"; with "rediss" in place of "redis" for TLS. Default:
            environment variable `OPERO_CACHE_REDIS_URL`, else `OPERO_REDIS_URL`, else redis://localhost:6379/0.
        cache_dir: the directory of the file of `disk`. Default: environment variable `OPERO_CACHE_DIR`, else `opero` in
            the platform's cache directory.
        store_timeout: the timeout of an operation of a store; seconds or text. Default 1 second.
        lock_timeout: how long callers in other processes wait for the one that computes a key of a shared store before
            they compute it themselves; seconds or text. Default 1 minute.
        arguments: more arguments for the dogpile.cache backend; of `redis`, for redis-py, such as `ssl_ca_certs`.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"arguments"})
    short: ClassVar[str | None] = "ttl"
    kind: ClassVar[str] = "cache"
    no_shadow: ClassVar[str] = (
        "a cache rejects, delays and repeats nothing; "
        "`cache_hits` and `cache_misses` of the statistics say what it does"
    )

    ttl: TimeToLive = None
    backend: str = "memory"
    key: Function | None = None
    ignore: Ignored = ()
    namespace: str = "opero"
    app: App | None = None
    version: Version | None = None
    follow_code: Flag = False
    max_size: PositiveCount = 1000
    stale_ttl: PositiveDuration | None = None
    early_refresh: PositiveDuration | None = None
    ttl_jitter: Ratio = 0.0
    cache_if: FunctionOfResult | None = None
    errors: ConditionsOrFlag = ()
    error_ttl: PositiveDuration | None = None
    share_errors: Flag = True
    tags: Tags = ()
    serializer: Annotated[Serializer, one_of(Serializer)] | None = None
    secret: Secret | None = None
    allow_unsigned_pickle: Flag = False
    url: Secret | None = None
    cache_dir: Directory | None = None
    store_timeout: PositiveDuration = 1.0
    lock_timeout: PositiveDuration = 60.0
    arguments: Arguments | None = None

    @property
    def is_in_memory(self) -> bool:
        """Whether results are kept in this process, by opero's own backend."""
        return self.backend in ("memory", "opero.memory")

    @property
    def outlives_process(self) -> bool:
        """Whether results may be read by other processes, and by later ones."""
        return not self.is_in_memory and self.backend not in IN_PROCESS

    @property
    def lacks_ttl(self) -> bool:
        """Whether a ttl has to be set, as a wrong result would be served until someone deletes it."""
        return self.outlives_process and "ttl" not in self.model_fields_set

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            ttl: DurationLike | Callable[[], DurationLike] | AdaptiveTTL | Mapping[str, Any] | None = None,
            backend: str = "memory",
            key: Callable[..., Any] | str | None = None,
            ignore: str | Collection[str] = (),
            namespace: str = "opero",
            app: str | None = None,
            version: str | float | None = None,
            follow_code: bool = False,
            max_size: int = 1000,
            stale_ttl: DurationLike | None = None,
            early_refresh: DurationLike | None = None,
            ttl_jitter: float = 0.0,
            cache_if: Callable[[Any], Any] | str | None = None,
            errors: ConditionsLike | bool | None = (),
            error_ttl: DurationLike | None = None,
            share_errors: bool = True,
            tags: str | Collection[str] = (),
            serializer: Serializer | None = None,
            secret: SecretStr | str | None = None,
            allow_unsigned_pickle: bool = False,
            url: SecretStr | str | None = None,
            cache_dir: PathLike[str] | str | None = None,
            store_timeout: DurationLike = 1.0,
            lock_timeout: DurationLike = 60.0,
            arguments: Mapping[str, Any] | None = None,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        idle = [name for name in ("stale_ttl", "early_refresh", "ttl_jitter") if getattr(self, name)]
        if idle and self.ttl is None:
            raise self._wrong(f"{idle[0]} has no effect without a ttl; set ttl, or remove {idle[0]}")
        least = self.ttl.cold if isinstance(self.ttl, AdaptiveTTL) else self.ttl
        if self.early_refresh is not None and isinstance(least, float) and self.early_refresh >= least:
            raise self._wrong(
                f"early_refresh ({format_duration(self.early_refresh)}) is not less than the "
                f"{'lowest ' if least is not self.ttl else ''}ttl ({format_duration(least)}), so every hit would "
                "refresh; lower early_refresh or raise ttl"
            )
        if self.ignore and self.key is not None:
            raise self._wrong(
                "ignore has no effect with a key, which decides what counts by itself; remove one of them"
            )
        if self.error_ttl is not None and not self.errors:
            raise self._wrong("error_ttl has no effect without errors: set errors: true, or remove error_ttl")
        return self

    @model_validator(mode="after")
    def _check_store(self) -> Self:
        store = self.backend.removeprefix("opero.")
        if self.arguments and store in ("memory", "disk"):
            raise self._wrong(
                f"backend {self.backend!r} takes no arguments; remove them, and use "
                f"{'cache_dir' if store == 'disk' else 'max_size'} instead"
            )
        if self.allow_unsigned_pickle or store in ON_THIS_MACHINE:
            return self
        if self.serializer == "pickle":
            raise self._wrong(
                f"serializer 'pickle' lets anyone who can write to the network store of backend {self.backend!r} run "
                "code in this process: use 'signed_pickle' with a secret, or 'json', or set allow_unsigned_pickle"
            )
        if store in PICKLING_CLIENTS:
            raise self._wrong(
                f"the client of backend {self.backend!r} unpickles whatever the server holds, so anyone who can write "
                "there can run code in this process; set allow_unsigned_pickle if you trust them"
            )
        return self

    @model_validator(mode="after")
    def _check_ttl_is_set(self) -> Self:
        # Other names may be misspelt: they are checked when the store is opened.
        if self.enabled and self.backend.removeprefix("opero.") in ("disk", "redis") and self.lacks_ttl:
            raise self._wrong(LACKS_TTL.format(backend=self.backend))
        return self

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        shown = super().__repr_args__()
        is_written = self.ttl is None and "ttl" in self.model_fields_set and self.outlives_process
        return [("ttl", None), *shown] if is_written else shown

    def _wrong(self, text: str) -> ValidationError:
        """Make an error of the whole policy; pydantic's own would show the input, which may contain secrets."""
        wrong = PydanticCustomError("contradiction", "{text}", {"text": text})
        return ValidationError.from_exception_data(type(self).__name__, [InitErrorDetails(type=wrong, input=self)])
