"""What all commands have in common: finding them, `--debug`, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import rich  # noqa: F401  # a part of the extra: without it the command says so, whichever runs
import typer
from typer.core import TyperGroup
from typer.main import get_command

from opero.cli.exits import CONFIGURATION, INTERRUPTED, NO_READER, FailedError
from opero.cli.terminal import print_error
from opero.errors import OperoError, nearest, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

COMMANDS = ("init", "check", "show", "explain", "diff", "schema", "env", "call", "map", "tune")

EXIT_CODES = """\b
Exit codes:
  0    all is well
  1    the answer is no: problems were found (check), items failed (map),
       the function failed (call, tune), environments differ (diff --exit-code)
  2    wrong usage, a wrong configuration, a file that cannot be read or written
  130  interrupted (Ctrl-C)
  141  whoever read the output has gone
"""


class _State:
    """What the options say that all commands have."""

    debug = False


def _debug(context: Any, value: bool) -> None:
    if value:
        context.find_root().obj.debug = True


Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", expose_value=False, callback=_debug)
]


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for."""

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
            app.command(cmd_name)(getattr(module, f"{cmd_name}_command"))
            command = get_command(app)
            command.params.append(_debug_option())
            self.commands[cmd_name] = command
        return self.commands[cmd_name]


def _debug_option() -> Any:
    """`--debug`, as an option that every command has without having to say so."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(debug: Debug = False) -> None: ...

    return get_command(app).params[0]


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is half as long, and --help is quick
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _version(value: bool) -> None:
    if value:
        from opero import __version__

        print(f"opero {__version__}")
        raise typer.Exit


@app.callback()
def opero(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_debug)] = False,
) -> None:
    """Resilience as configuration: check, explain and try what policies say, and run functions under them."""


def run(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        Its exit code.
    """
    state = _State()
    try:
        code = _invoke(list(arguments), state)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more. The interpreter's own flush at its end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told of
        return _told(error, state)
    finally:
        if (loading := sys.modules.get("opero.cli.loading")) is not None:
            loading.hide_warnings()
    return code


def _invoke(arguments: list[str], state: _State) -> int:
    command: Any = get_command(app)
    if "_OPERO_COMPLETE" in os.environ:  # a shell asks
        command.main(arguments, prog_name="opero")
    try:
        # Not `command.main`, which decides by itself what becomes of a Ctrl-C and of a reader that has gone.
        with command.make_context("opero", arguments, obj=state) as context:
            code = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def _told(error: Exception, state: _State) -> int:
    """Say on stderr what went wrong."""
    if state.debug:
        traceback.print_exception(error.__cause__ if isinstance(error, FailedError) and error.__cause__ else error)
    code = getattr(error, "exit_code", CONFIGURATION)
    if hasattr(error, "format_message"):  # typer's usage errors
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
        else:
            usage = "" if context is None else f"\n{context.get_usage()}\nTry: {context.command_path} --help"
            print_error(f"{error.format_message()}{usage}")
        return int(code)
    print_error(_text(error))
    if not state.debug and not isinstance(error, OperoError | OSError):
        print("this is no error that opero knows; --debug shows where it comes from", file=sys.stderr)
    return int(code)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    from opero.config.report import without_passwords

    text = without_passwords(text_of(error))  # a user's own may be in it
    return text if isinstance(error, OperoError) else f"{type(error).__name__}: {text}"
