"""`opero call`: calls a function once under a policy."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TextIO

import typer

from opero.cli.arguments import Arguments
from opero.cli.exits import OK, FailedError, UsageError, failed_by_exit
from opero.cli.functions import bind_function, flat_options, parse_pairs
from opero.cli.loading import load_function, use_registry
from opero.cli.options import Config, Environment, Json, PolicyName  # noqa: TC001  # typer reads the annotations
from opero.cli.terminal import json_text, print_json, say, stdout_reserved
from opero.errors import ConfigError, message_of, readable
from opero.runtime.functions import signature_of


def call_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="The function to call.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARGS]...",
            help="Values, as annotations say: text or JSON. Put -- before arguments such as -5.",
        ),
    ] = None,
    keywords: Annotated[
        list[str] | None, typer.Option("--kw", "-k", metavar="NAME=VALUE", help="A keyword argument.")
    ] = None,
    policy: PolicyName = None,
    env: Environment = None,
    config: Config = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of @opero, such as --set retries=5."),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Print on stderr what happened to the call: its attempts, delays and waits.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print the function's statistics on stderr.")] = False,
    as_json: Json = False,
) -> int:
    """Call a function once under a policy.

    The result is printed as JSON; a generator's values are printed one per line. The policy of a decorated function
    applies; --policy is merged over it, and --set over both. Output of the function itself goes to stderr. A parameter
    that is annotated as str gets its text as it is, and others what their type reads from it; without an annotation, it
    is JSON, or else text.

    \b
    opero call app.users:get_user ada --policy api --why --stats
    opero call app.users:find --kw name=Ada --kw limit=10
    opero call math:pow -- 2 -5
    """
    from opero.cli.values import jsonable

    options = flat_options(sets)
    texts = parse_pairs(keywords or (), "--kw")
    registry = use_registry(config, env)
    with stdout_reserved() as out:
        function = bind_function(load_function(target), registry, policy, options)
        _check_arguments(target, function, arguments or [], texts)
        known = Arguments(function)
        args, kwargs = known.positional(arguments or []), known.keywords(texts)
        _ = function.policy.cache  # raises here, not as an error of the function, if its profile does not exist
        values: list[Any] = []

        def emit(value: Any) -> None:
            if as_json:
                values.append(jsonable(value))
            else:
                line = json_text(json.dumps(jsonable(value), ensure_ascii=False))
                print(line, file=out, flush=True)  # a result

        told: dict[str, Any] = {}
        try:
            with _telling(told, why=why, as_json=as_json):
                is_generator = _call(function, args, kwargs, emit)
        except SystemExit as end:
            raise failed_by_exit(target, end) from end
        except Exception as error:  # noqa: BLE001  # the function may raise anything
            _fail(target, function, error, out if as_json else None, told, stats=stats)
        if as_json:
            result = values if is_generator else values[0]
            print_json({"function": target, "result": result, **told, "stats": function.stats.as_dict()}, out)
    if stats:
        _print_stats(function)
    return OK


def _call(function: Any, args: list[Any], kwargs: dict[str, Any], emit: Callable[[Any], None]) -> bool:
    """Call a function, emit its result or the values that it yields, and return whether it is a generator."""
    kind = function.binding.kind
    if kind == "sync":
        emit(function(*args, **kwargs))
    elif kind == "generator":
        for value in function(*args, **kwargs):
            emit(value)
    else:

        async def run() -> None:
            if kind == "async":
                emit(await function(*args, **kwargs))
                return
            async for value in function(*args, **kwargs):
                emit(value)

        asyncio.run(run())
    return "generator" in kind


def _check_arguments(target: str, function: Any, args: list[str], kwargs: dict[str, str]) -> None:
    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"{target}{signature} {message_of(error)}") from error


@contextmanager
def _telling(told: dict[str, Any], *, why: bool, as_json: bool) -> Iterator[None]:
    """Tell what happens to the call: on stderr when it has ended, or for JSON in `told`."""
    if not why:
        yield
        return
    from opero.observe.tracing import trace

    try:
        with trace() as receipt:
            yield
    finally:
        if as_json:
            told["receipt"] = receipt.as_dict()
        else:
            say(str(receipt), file=sys.stderr)


def _fail(
    target: str, function: Any, error: Exception, out: TextIO | None, told: dict[str, Any], *, stats: bool
) -> NoReturn:
    """Raise the error of a failed call, after printing it as JSON on `out`, unless that is None.

    Raises:
        ConfigError: the function was not called, as its configuration is invalid.
        FailedError: the function failed.
    """
    from opero.cli.results import error_data

    if isinstance(error, ConfigError):
        raise error
    if stats:
        _print_stats(function)
    data = error_data(error)
    if out is not None:
        print_json({"function": target, "error": data, **told, "stats": function.stats.as_dict()}, out)
    lines = [f"{target} failed: {data['type']}: {readable(data['message'])}"]
    while "cause" in data:
        data = data["cause"]
        lines.append(f"  caused by {data['type']}: {readable(data['message'])}")
    raise FailedError("\n".join(lines)) from error


def _print_stats(function: Any) -> None:
    from opero.cli.values import jsonable

    for name, value in function.stats.as_dict().items():
        if value:
            say(f"{name}: {jsonable(value)}", file=sys.stderr)
