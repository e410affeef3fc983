"""`opero tune`: measures which mode and number of workers map a function fastest."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from opero.cli.arguments import item_fit
from opero.cli.exits import OK, FailedError, UsageError, failed_by_exit
from opero.cli.functions import bind_function, unpacked
from opero.cli.items import InvalidItem, Items, fitted
from opero.cli.loading import load_function, use_registry
from opero.cli.options import (  # noqa: TC001  # typer reads the annotations
    Config,
    Delimiter,
    Environment,
    ItemFile,
    ItemFormat,
    Json,
    PolicyName,
    Unpack,
)
from opero.cli.terminal import print_json, print_warning, say, stdout_reserved
from opero.errors import MapError, describe

DAY = 86_400.0


def tune_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="The function to measure.")],
    items: ItemFile,
    sample: Annotated[int, typer.Option("--sample", metavar="N", min=1, help="Use the first N items.")] = 100,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="The approximate duration of the measurements.")
    ] = 3.0,
    form: ItemFormat = None,
    delimiter: Delimiter = None,
    unpack: Unpack = False,
    policy: PolicyName = None,
    env: Environment = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Measure how a function is mapped fastest.

    The function runs on a sample of items in several modes, with several numbers of workers; the fastest is printed,
    also as YAML to paste. It runs repeatedly, without cache, retries or limits. Items that fail are left out.

    \b
    opero tune app.images:resize photos.txt
    """
    from opero.cli.words import number
    from opero.parallel.tuning import tune_without_failures

    if not 0 < seconds <= DAY:
        raise UsageError(f"--seconds {seconds:g} is invalid: use a number > 0 and ≤ {DAY:.0f}")
    registry = use_registry(config, env)
    source = Items(items, form, delimiter)
    with stdout_reserved():
        function = load_function(target)
        if unpack:
            function = unpacked(target, function)
        if policy is not None:
            function = bind_function(function, registry, policy, {})
        bound = bind_function(function, registry, None, {})
        read = list(islice(fitted(source, bound.binding.function.checked if unpack else item_fit(bound)), sample))
        found = [each for each in read if not isinstance(each, InvalidItem)]
        if not found:
            why = f"; the first is invalid: {read[0].error}" if read else ""
            raise UsageError(f"{source.name} contains no items to measure with{why}")
        try:
            tuning, failures = tune_without_failures(function, found, seconds=seconds)
        except MapError as error:
            raise FailedError(error.message) from error
        except SystemExit as end:
            raise failed_by_exit(target, end) from end
    skipped = [*(each.error for each in read if isinstance(each, InvalidItem)), *(each.exception for each in failures)]
    if skipped:
        more = "" if len(skipped) == 1 else "; the first"
        print_warning(f"left out {number(len(skipped), 'item')} that failed{more}: {describe(skipped[0])}")
    if as_json:
        print_json({**asdict(tuning), "function": target, "options": tuning.options})
        return OK
    say(str(tuning))
    fields = ", ".join(f"{name}: {value}" for name, value in tuning.options.items())
    say(f'\n# in a profile, or for this function only:\nfunctions:\n  "{target}":\n    parallel: {{{fields}}}')
    return OK
