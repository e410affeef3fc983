"""`opero map`: calls a function for each item of a file, writes results as they finish, and resumes earlier runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.arguments import item_fit
from opero.cli.exits import UsageError
from opero.cli.functions import bind_function, flat_options, unpacked
from opero.cli.items import Counted, Items, fitted, keyed
from opero.cli.loading import load_function, use_registry
from opero.cli.options import (  # typer reads the annotations
    Config,
    Environment,
    ItemFile,
    ItemFormat,
    Json,
    PolicyName,
    Unpack,
    one_of,
)
from opero.cli.terminal import stdout_reserved

if TYPE_CHECKING:
    from opero.cli.map_run import RunJournal
    from opero.cli.results import Results

MODES = ("auto", "thread", "process", "async", "async_process", "dask", "ray")
REPLIES = ("return", "raise", "skip")


def map_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="The function to call for each item.")],
    items: ItemFile,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="The file for results, one JSON line each; - for stdout."),
    ] = "-",
    policy: PolicyName = None,
    env: Environment = None,
    config: Config = None,
    form: ItemFormat = None,
    unpack: Unpack = False,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="FIELD", help="Repeat this field of the item in the line of its result."),
    ] = None,
    mode: Annotated[
        str | None, one_of("--mode", MODES, "The kind of workers. Default: the policy's mode, else auto.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option("--workers", "-w", metavar="N", help="The number of items to run at the same time.")
    ] = None,
    on_error: Annotated[
        str | None,
        one_of(
            "--on-error",
            REPLIES,
            "The handling of failed items: write a line with the error (return), stop the map (raise), or leave them "
            "out (skip). Default: the policy's, else return.",
        ),
    ] = None,
    max_failures: Annotated[
        str | None,
        typer.Option("--max-failures", metavar="N|N%", help="Stop the map when more items than this have failed."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option of @opmap, such as --set retries=5."),
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Write results in the order of their items.")] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal", metavar="FILE", help="The record of finished items, to resume from. Default: OUTPUT.journal."
        ),
    ] = None,
    no_journal: Annotated[
        bool, typer.Option("--no-journal", help="Keep no journal; the run cannot be resumed.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start from the beginning, and overwrite the output file.")
    ] = False,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="Show a progress bar. Default: if stderr is a terminal."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Call a function for each item of a file.

    Several items run at the same time, and each result is written as it finishes. The policy of a decorated function
    applies; --policy is merged over it, and the other options over both.

    To resume a run that was interrupted, killed, or had failures, give the same command again: finished items are
    recorded in the journal, from which the output is rewritten.

    \b
    opero map app.users:get_user ids.txt -o users.jsonl --policy api
    opero map app.images:resize photos.csv -o sizes.jsonl --mode process --unpack --key path
    cat ids.txt | opero map app.users:get_user - --workers 20 > users.jsonl
    """
    from opero.cli.map_run import MapRun, RunJournal, make_run
    from opero.cli.results import Results

    if journal is not None and no_journal:
        raise UsageError("--journal and --no-journal cannot be combined")
    options = flat_options(sets, mode=mode, workers=workers, on_error=on_error, max_failures=max_failures)
    registry = use_registry(config, env)
    source = Items(items, form)
    with stdout_reserved() as out:
        function = load_function(target)
        if unpack:
            function = unpacked(target, function)
        options.setdefault("ordered", ordered)
        function = bind_function(function, registry, policy, options, {"on_error": "return"})
        results = Results(output, out, skips=function.policy.parallel.on_error == "skip")
        run_journal = RunJournal.of(results, journal, wanted=not no_journal)
        _check_files(source, results, run_journal)
        run_journal.prepare(results, overwrite=overwrite)
        feed: Iterable[Any] = source if unpack else fitted(source, item_fit(function))
        if key is not None:
            results.keys = {}
            feed = keyed(source, key, results.keys.__setitem__)
        shows_progress = sys.stderr.isatty() if progress is None else progress
        if shows_progress and (count := source.count()) is not None:
            feed = Counted(feed, count)
        run = make_run(function, feed, run_journal.path, "auto" if progress is None else progress, results)
        return MapRun(target, run, results, run_journal, as_json=as_json).run()


def _check_files(source: Items, results: Results, journal: RunJournal) -> None:
    """Check that items, results and journal are different files.

    Raises:
        UsageError: two of them are the same file.
    """
    from opero.cli.results import is_same_file

    if not source.is_stdin and results.is_file(source.path):
        raise UsageError(f"{results.path} is the file of items; use another file for the results")
    if journal.path is not None:
        path = str(journal.path)
        if not source.is_stdin and is_same_file(source.path, path):
            raise UsageError(f"{path} is the file of items; use another file for the journal")
        if results.is_file(path):
            raise UsageError(f"{path} is the file of results; use another file for the journal")
