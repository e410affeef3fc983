"""`opero map`: a function over the items of a file, with results as they finish, and another run that goes on."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.options import Config, Environment, Json, PolicyName, one_of  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opero.cli.items import Items
    from opero.cli.mapping import Record
    from opero.cli.results import Results

__all__ = ["map_command"]

MODES = ("auto", "thread", "process", "async", "async_process", "dask", "ray")
REPLIES = ("return", "raise", "skip")


def map_command(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="What to call for each item.")],
    items: Annotated[str, typer.Argument(metavar="ITEMS", help="The file of the items; - for stdin.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where results go, a JSON line each; - for stdout.")
    ] = "-",
    policy: PolicyName = None,
    env: Environment = None,
    config: Config = None,
    form: Annotated[
        str | None, one_of("--format", ("jsonl", "csv", "lines"), "What ITEMS is. Default: by its name, else lines.")
    ] = None,
    unpack: Annotated[bool, typer.Option("--unpack", help="Pass the fields of an item as keyword arguments.")] = False,
    key: Annotated[
        str | None, typer.Option("--key", metavar="FIELD", help="Repeat this field of the item in its result's line.")
    ] = None,
    mode: Annotated[str | None, one_of("--mode", MODES, "Who works. Default: what the policy says, else auto.")] = None,
    workers: Annotated[str | None, typer.Option("--workers", "-w", metavar="N", help="Items at a time.")] = None,
    on_error: Annotated[
        str | None,
        one_of(
            "--on-error",
            REPLIES,
            "A failed item gets a line with its error (return), ends the map (raise), or is left out (skip). Default: "
            "what the policy says, else return.",
        ),
    ] = None,
    max_failures: Annotated[
        str | None,
        typer.Option("--max-failures", metavar="N|N%", help="End the map when more items than this have failed."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option of @opmap, such as --set retries=5."),
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Write results in the order of their items.")] = False,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="What is done, for the next run. Default: OUTPUT.journal."),
    ] = None,
    no_journal: Annotated[bool, typer.Option("--no-journal", help="Keep none: another run begins anew.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever the output file holds.")] = False,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Default: a bar, where stderr is a terminal.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Call a function for each item of a file.

    Several run at a time, and each result is written as it finishes. A function that has a policy keeps it; --policy is
    laid over that, and the other options over both.

    A run that was interrupted, killed, or had failures goes on where it ended when the same command is given again:
    what is done stands in the journal, from which the output is written anew.

    \b
    opero map app.users:get_user ids.txt -o users.jsonl --policy api
    opero map app.images:resize photos.csv -o sizes.jsonl --mode process --unpack --key path
    cat ids.txt | opero map app.users:get_user - --workers 20 > users.jsonl
    """
    from opero.cli.exits import UsageError
    from opero.cli.functions import bound, options_of, unpacked
    from opero.cli.items import Counted, Items, keyed
    from opero.cli.loading import load_function, use_registry
    from opero.cli.mapping import MapRun, Record, make_run
    from opero.cli.results import Results
    from opero.cli.terminal import stdout_kept

    if journal is not None and no_journal:
        raise UsageError("--journal and --no-journal contradict each other; give one of them")
    options = options_of(sets, mode=mode, workers=workers, on_error=on_error, max_failures=max_failures)
    registry = use_registry(config, env)
    source = Items(items, form)
    with stdout_kept() as out:
        function = load_function(target)
        if unpack:
            function = unpacked(target, function)
        options.setdefault("ordered", ordered)
        function = bound(function, registry, policy, options, {"on_error": "return"})
        results = Results(output, out, skips=function.policy.parallel.on_error == "skip")
        record = Record.of(results, journal, wanted=not no_journal)
        _check_files(source, results, record)
        record.prepare(results, overwrite=overwrite)
        feed: Iterable[Any] = source
        if key is not None:
            results.keys = {}
            feed = keyed(source, key, results.keys.__setitem__)
        if (count := _count(source, progress)) is not None:
            feed = Counted(feed, count)
        run = make_run(function, feed, record.path, "auto" if progress is None else progress, results)
        return MapRun(target, run, results, record, as_json=as_json).run()


def _check_files(source: Items, results: Results, record: Record) -> None:
    """See that no file is to be two things at once.

    Raises:
        UsageError: one is.
    """
    from opero.cli.exits import UsageError
    from opero.cli.results import is_same_file

    if not source.is_stdin and results.is_file(source.path):
        raise UsageError(f"{results.path} holds the items; give another file for the results")
    if record.path is not None:
        path = str(record.path)
        if not source.is_stdin and is_same_file(source.path, path):
            raise UsageError(f"{path} holds the items; give another file for the journal")
        if results.is_file(path):
            raise UsageError(f"{path} takes the results; give another file for the journal")


def _count(source: Items, progress: bool | None) -> int | None:
    """How many items there are, where somebody looks on."""
    import sys

    return source.count() if progress or (progress is None and sys.stderr.isatty()) else None
