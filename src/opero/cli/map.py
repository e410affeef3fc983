"""`opero map`: calls a function for each item of a file, writes results as they finish, and resumes earlier runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.arguments import item_fit
from opero.cli.exits import UsageError
from opero.cli.functions import bind_function, flat_options, unpacked
from opero.cli.items import Counted, InvalidItem, Items, delimiter_of, fitted, keyed
from opero.cli.loading import load_function, use_registry
from opero.cli.options import (  # typer reads the annotations
    Config,
    Delimiter,
    Environment,
    ItemFile,
    ItemFormat,
    Json,
    PolicyName,
    Unpack,
    one_of,
)
from opero.cli.terminal import stdout_reserved
from opero.errors import message_of
from opero.runtime.functions import signature_of

if TYPE_CHECKING:
    from opero.cli.map_run import RunJournal
    from opero.cli.results import Results
    from opero.cli.tables import Table
    from opero.registry.registry import Registry

MODES = ("auto", "thread", "process", "async", "async_process", "dask", "ray")
REPLIES = ("return", "raise", "skip")


def map_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="The function to call for each item.")],
    items: ItemFile,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="The file for results, one JSON line each; - for stdout."),
    ] = "-",
    form_out: Annotated[
        str | None,
        one_of("--output-format", ("jsonl", "csv"), "The format of FILE. Default: by its suffix, else jsonl."),
    ] = None,
    policy: PolicyName = None,
    env: Environment = None,
    config: Config = None,
    form: ItemFormat = None,
    delimiter: Delimiter = None,
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
    opero map app.images:resize photos.csv -o sizes.csv --mode process --unpack --key path
    cat ids.txt | opero map app.users:get_user - --workers 20 > users.jsonl
    """
    from opero.cli.map_run import MapRun, RunJournal, make_run
    from opero.cli.results import Results
    from opero.executors.classifier import Classifier

    if journal is not None and no_journal:
        raise UsageError("--journal and --no-journal cannot be combined")
    options = flat_options(sets, mode=mode, workers=workers, on_error=on_error, max_failures=max_failures)
    registry = use_registry(config, env)
    source = Items(items, form, delimiter)
    with stdout_reserved() as out:
        function = load_function(target)
        if unpack:
            function = unpacked(target, function)
        else:
            _check_takes_an_item(target, function)
        options.setdefault("ordered", ordered)
        function = bind_function(function, registry, policy, options, {"on_error": "return"})
        skips = function.policy.parallel.on_error == "skip"
        results = Results(output, out, skips=skips, table=_table(output, form_out, delimiter, has_keys=key is not None))
        failures = function.policy.active("failures")
        if failures is not None:
            results.kind_of = Classifier.of(failures).kind_of
        run_journal = RunJournal.of(results, journal, wanted=not no_journal)
        _check_files(source, results, run_journal)
        run_journal.prepare(results, overwrite=overwrite)
        fit = function.binding.function.checked if unpack else item_fit(function)
        function, feed = _with_batches(function, fitted(source, fit), registry)
        if key is not None:
            results.keys = {}
            feed = keyed(feed, source, key, results.keys.__setitem__)
        shows_progress = sys.stderr.isatty() if progress is None else progress
        if shows_progress and (count := source.count()) is not None:
            feed = Counted(feed, count)
        run = make_run(function, feed, run_journal.path, "auto" if progress is None else progress, results)
        return MapRun(target, run, results, run_journal, as_json=as_json).run()


def _check_takes_an_item(target: str, function: Any) -> None:
    """Check that a function can be called with one item.

    Raises:
        UsageError: it has no parameter, or requires more than one argument.
    """
    signature = signature_of(function)
    if signature is not None:
        try:
            signature.bind(None)
        except TypeError as error:
            raise UsageError(
                f"{target}{signature} is called with one item as its argument: {message_of(error)}; --unpack passes "
                "the fields of an item as keyword arguments instead"
            ) from error


def _table(output: str, form: str | None, delimiter: str | None, *, has_keys: bool) -> Table | None:
    """Return what makes rows of a table of the results, if that is their format."""
    from opero.cli.tables import Table

    if form is None:
        form = "csv" if output.lower().endswith((".csv", ".tsv")) else "jsonl"
    if form not in ("jsonl", "csv"):
        raise UsageError(f"--output-format {form!r} is invalid: use jsonl or csv")
    return Table(delimiter_of(output, delimiter), has_keys=has_keys) if form == "csv" else None


def _with_batches(function: Any, items: Iterable[Any], registry: Registry) -> tuple[Any, Iterable[Any]]:
    """Return the function and all items. Whether calls receive batches is decided by the first item that is valid."""
    from opero.parallel.engine.batching import BatchRule

    read, rest = [], iter(items)
    for item in rest:
        read.append(item)
        if not isinstance(item, InvalidItem):
            break
    if len(read) > 1 and not isinstance(read[-1], InvalidItem) and function.policy.parallel.batch is None:
        binding = function.binding
        batch = BatchRule(binding.function, int(binding.is_method), None).applies(read[-1])
        function = bind_function(function, registry, None, {"batch": batch})
    return function, chain(read, rest)


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
