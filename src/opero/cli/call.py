"""`opero call`: one call of a function under a policy."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from opero.cli.options import Config, Environment, Json, PolicyName  # noqa: TC001  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_command"]


def call_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="What to call.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="JSON where it is JSON, else text; -- before -5.")
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
    stats: Annotated[bool, typer.Option("--stats", help="Print the function's counts on stderr.")] = False,
    as_json: Json = False,
) -> int:
    """Call a function once under a policy.

    The result is printed as JSON. A function that has a policy keeps it; --policy is laid over that, and --set over
    both. What the function prints goes to stderr. What a generator yields is printed value by value, a line each.

    \b
    opero call app.users:get_user ada --policy api --stats
    opero call app.users:find --kw name=Ada --kw limit=10
    opero call math:pow -- 2 -5
    """
    from opero.cli.exits import OK, ended
    from opero.cli.functions import bound, options_of, pairs, parsed
    from opero.cli.loading import load_function, use_registry
    from opero.cli.terminal import print_json, stdout_kept
    from opero.cli.values import jsonable

    options = options_of(sets)
    args = [parsed(each) for each in arguments or ()]
    kwargs = pairs(keywords or (), "--kw")
    registry = use_registry(config, env)
    with stdout_kept() as out:
        function = bound(load_function(target), registry, policy, options)
        _check_arguments(target, function, args, kwargs)
        _ = function.policy.cache  # a profile that does not exist is no failure of the function
        values: list[Any] = []

        def take(value: Any) -> None:
            if as_json:
                values.append(jsonable(value))
            else:
                print(_written(value), file=out, flush=True)

        try:
            is_generator = _called(function, args, kwargs, take)
        except SystemExit as end:
            raise ended(target, end) from end
        except Exception as error:  # noqa: BLE001  # the function's own
            _fail(target, function, error, out if as_json else None, stats=stats)
        if as_json:
            result = values if is_generator else values[0]
            print_json({"function": target, "result": result, "stats": _stats(function)}, out)
    if stats:
        _print_stats(function)
    return OK


def _called(function: Any, args: list[Any], kwargs: dict[str, Any], take: Callable[[Any], None]) -> bool:
    """Call it and hand on what comes of it; whether these are the values of a generator."""
    kind = function.binding.kind
    if kind == "sync":
        take(function(*args, **kwargs))
    elif kind == "generator":
        for value in function(*args, **kwargs):
            take(value)
    else:

        async def run() -> None:
            if kind == "async":
                take(await function(*args, **kwargs))
                return
            async for value in function(*args, **kwargs):
                take(value)

        asyncio.run(run())
    return "generator" in kind


def _check_arguments(target: str, function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    from opero.cli.exits import UsageError
    from opero.runtime.functions import signature_of

    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"{target}{signature} {error}") from error


def _fail(target: str, function: Any, error: Exception, out: TextIO | None, *, stats: bool) -> NoReturn:
    """Say that the function failed; as JSON, too, where that is wanted.

    Raises:
        ConfigError: it did not fail, but cannot be called as it is configured.
        FailedError: it failed.
    """
    from opero.cli.exits import FailedError
    from opero.cli.results import error_data
    from opero.cli.terminal import print_json
    from opero.errors import ConfigError

    if isinstance(error, ConfigError):
        raise error
    if stats:
        _print_stats(function)
    data = error_data(error)
    if out is not None:
        print_json({"function": target, "error": data, "stats": _stats(function)}, out)
    told = [f"{target} failed: {data['type']}: {data['message']}"]
    while "cause" in data:
        data = data["cause"]
        told.append(f"  because of {data['type']}: {data['message']}")
    raise FailedError("\n".join(told)) from error


def _written(value: Any) -> str:
    import json

    from opero.cli.values import jsonable

    return json.dumps(jsonable(value), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def _stats(function: Any) -> dict[str, Any]:
    return dict(function.stats.as_dict())


def _print_stats(function: Any) -> None:
    from opero.cli.values import jsonable

    for name, value in _stats(function).items():
        if value:
            print(f"{name}: {jsonable(value)}", file=sys.stderr)
