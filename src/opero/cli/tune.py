"""`opero tune`: how a function is best mapped, found out on a sample of its items."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from opero.cli.options import Config, Environment, Json, PolicyName, one_of  # typer reads the annotations

__all__ = ["tune_command"]

LONGEST = 86_400.0
"""Seconds of a day."""


def tune_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="What is to be mapped.")],
    items: Annotated[str, typer.Argument(metavar="ITEMS", help="The file of the items; - for stdin.")],
    sample: Annotated[int, typer.Option("--sample", metavar="N", min=1, help="Take the first N items.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="About how long it may take.")] = 3.0,
    form: Annotated[
        str | None, one_of("--format", ("jsonl", "csv", "lines"), "What ITEMS is. Default: by its name, else lines.")
    ] = None,
    unpack: Annotated[bool, typer.Option("--unpack", help="Pass the fields of an item as keyword arguments.")] = False,
    policy: PolicyName = None,
    env: Environment = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Find out how a function is best mapped.

    It is run on a sample of its items in several ways; what serves it best is printed as YAML, too, to paste. Only the
    function itself is run, again and again: no cache, no retries, no limits.

    \b
    opero tune app.images:resize photos.txt
    """
    from opero.cli.exits import OK, FailedError, UsageError, ended
    from opero.cli.functions import bound, unpacked
    from opero.cli.items import Items
    from opero.cli.loading import load_function, use_registry
    from opero.cli.terminal import print_json, stdout_kept
    from opero.errors import MapError
    from opero.parallel.tuning import tune

    if not 0 < seconds <= LONGEST:
        why = "leaves no time to measure anything" if seconds <= 0 else "is no time to wait for"
        raise UsageError(f"--seconds {seconds:g} {why}; give more than 0, and at most a day")
    registry = use_registry(config, env)
    source = Items(items, form)
    with stdout_kept():
        function = load_function(target)
        if unpack:
            function = unpacked(target, function)
        if policy is not None:
            function = bound(function, registry, policy, {})
        found = list(islice(source, sample))
        if not found:
            raise UsageError(f"{source.name} has no items; give some to measure with")
        try:
            tuning = tune(function, found, seconds=seconds)
        except MapError as error:
            raise FailedError(error.message) from error
        except SystemExit as end:
            raise ended(target, end) from end
    if as_json:
        print_json(
            {
                "function": target,
                "bound_by": tuning.bound_by,
                "mode": tuning.mode,
                "workers": tuning.workers,
                "batch_size": tuning.batch_size,
                "gain": tuning.gain,
                "seconds": tuning.seconds,
                "options": tuning.options,
                "measurements": [
                    {
                        "mode": each.mode,
                        "workers": each.workers,
                        "rate": each.rate,
                        "cpu": each.cpu,
                        "batch_size": each.batch_size,
                    }
                    for each in tuning.measurements
                ],
            }
        )
        return OK
    print(tuning)
    fields = ", ".join(f"{name}: {value}" for name, value in tuning.options.items())
    print(f'\n# in a profile, or for this function alone:\nfunctions:\n  "{target}":\n    parallel: {{{fields}}}')
    return OK
