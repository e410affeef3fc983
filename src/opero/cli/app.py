"""The root command: loads subcommands, handles `--debug`, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import rich  # noqa: F401  # part of the extra: if it is missing, every command reports that
import typer
from typer.core import TyperGroup
from typer.main import get_command

from opero.cli.exits import BROKEN_PIPE, INTERRUPTED, INVALID, TERMINATED, FailedError
from opero.cli.loading import hide_warnings, importing_from_here
from opero.cli.signals import Termination
from opero.cli.terminal import print_error, say
from opero.errors import OperoError, describe, nearest, text_of, without_passwords

COMMANDS = (
    "init",
    "check",
    "show",
    "explain",
    "diff",
    "schema",
    "env",
    "call",
    "map",
    "run",
    "tune",
    "export",
    "top",
    "migrate",
)

EXIT_CODES = """\b
Exit codes:
  0    success
  1    problems were found (check), items failed (map), the function failed
       (call, tune), environments differ (diff --exit-code), decorators were
       left alone (migrate)
  2    invalid usage or configuration, or a file that cannot be read or written
  130  interrupted (Ctrl-C)
  141  the reader of the output closed it (broken pipe)
  143  terminated (SIGTERM)
"""


class _GlobalOptions:
    """The values of options that all commands have."""

    debug = False


def _debug(context: Any, value: bool) -> None:
    if value:
        context.find_root().obj.debug = True


class _Commands(TyperGroup):
    """The subcommands, each imported when it is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module = import_module(f"opero.cli.{cmd_name}")
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            settings = getattr(module, "CONTEXT", {})
            app.command(cmd_name, context_settings=settings)(getattr(module, f"{cmd_name}_command"))
            command = get_command(app)
            command.params += [each for each in self.params if each.name == "debug"]
            self.commands[cmd_name] = command
        return self.commands[cmd_name]


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is shorter, and does not import rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _version(value: bool) -> None:
    if value:
        from opero import __version__

        say(f"opero {__version__}")
        raise typer.Exit


@app.callback()
def opero(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[  # an option of every command, see `get_command` above
        bool, typer.Option("--debug", help="Show the traceback of an error.", expose_value=False, callback=_debug)
    ] = False,
) -> None:
    """Resilience as configuration: check and explain policies, and run functions under them."""


def run(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: the arguments of the command line, without the program's name.

    Returns:
        The exit code.
    """
    options, termination = _GlobalOptions(), Termination()
    with termination.as_interrupt():
        code = _run(arguments, options)
    return TERMINATED if termination.received and code == INTERRUPTED else code


def _run(arguments: Sequence[str], options: _GlobalOptions) -> int:
    try:
        code = _invoke(list(arguments), options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Prevents another BrokenPipeError when the interpreter flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # every error gets a message and an exit code
        return _report(error, options)
    finally:
        hide_warnings()
    return code


def _invoke(arguments: list[str], options: _GlobalOptions) -> int:
    command: Any = get_command(app)
    if "_OPERO_COMPLETE" in os.environ:  # a shell requests completions
        command.main(arguments, prog_name="opero")
    try:
        # Not `command.main`, which handles Ctrl-C and broken pipes in its own way.
        with importing_from_here(), command.make_context("opero", arguments, obj=options) as context:
            code = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def _report(error: Exception, options: _GlobalOptions) -> int:
    """Print an error on stderr, and return the exit code."""
    if options.debug:
        shown = error.__cause__ if isinstance(error, FailedError) and error.__cause__ else error
        say("".join(traceback.format_exception(shown)).rstrip("\n"), file=sys.stderr)
    code = getattr(error, "exit_code", INVALID)
    if hasattr(error, "format_message"):  # typer's usage errors
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            say(error.format_message(), file=sys.stderr)
        else:
            usage = "" if context is None else f"\n{context.get_usage()}\nTry: {context.command_path} --help"
            print_error(f"{error.format_message()}{usage}")
        return int(code)
    print_error(_text(error))
    if not options.debug and not isinstance(error, OperoError | OSError):
        say("this is an unexpected error; --debug shows its traceback", file=sys.stderr)
    return int(code)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    # A user's exception may contain a password.
    return without_passwords(text_of(error)) if isinstance(error, OperoError) else describe(error)
