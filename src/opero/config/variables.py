"""Collects variables from the process, a `.env` file, and a directory of secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from opero.config.environment import RawValue, process_variables
from opero.config.location import show_path
from opero.config.sources import Source
from opero.config.variable_names import PREFIX
from opero.errors import error_at, message_of
from opero.runtime.dotenv_file import MOST_ADDED, lines_of
from opero.runtime.environment_files import HERE, env_file, secrets_dir
from opero.runtime.named_pipe import contents_of

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.report import Report

WITHOUT_PREFIX = ("ENVIRONMENT",)
"""Variables without the prefix OPERO_ that a `.env` file or a secret may also set."""
LARGEST_SECRET = 1 << 16


def collect_variables(
    environ: Mapping[str, str] | None,
    dotenv: str | Path | None,
    secrets: str | Path | None,
    report: Report,
    base: Path = HERE,
) -> tuple[dict[str, dict[str, RawValue]], list[Path]]:
    """Return source → variables, lowest precedence first; and the files and directories that contain variables or
    would if they existed.

    Args:
        environ: the environment variables; None: those of the process. If given, a `.env` file and /run/secrets
            are read only if they are named explicitly.
        dotenv, secrets: the `.env` file and the directory of secrets, as given in code (see `environment_files`).
        report: receives the problems, and the text of the file.
        base: the directory that relative paths refer to.

    Raises:
        ConfigError: a named file or directory does not exist.
    """
    process = os.environ if environ is None else environ
    implied = environ is None
    found: dict[str, dict[str, RawValue]] = {}
    held_in: list[Path] = []
    folder = secrets_dir(process, secrets, implied=implied, base=base)
    if folder is not None:
        found[f"secrets in {show_path(folder.absolute())}"] = _read_secrets(folder, report)
    if folder is not None or implied:
        held_in.append(folder or base / secrets_dir.default)
    path = env_file(process, dotenv, implied=implied, base=base)
    if path is not None:
        found[show_path(path.absolute())] = _read_dotenv(path, process, report)
    # A pipe changes whenever it is read, so it is not watched.
    if (path is not None and not path.is_fifo()) or (path is None and implied):
        held_in.append(path or base / env_file.default)
    found["environment variables"] = {
        **process_variables(process),
        **{name: RawValue(process[name], Source(name)) for name in WITHOUT_PREFIX if name in process},
    }
    with suppress(FileNotFoundError):  # the working directory has been removed
        held_in = [each.absolute() for each in held_in]
    return found, held_in


def flatten(variables: Mapping[str, Mapping[str, RawValue]]) -> dict[str, str]:
    """Return name → text, as if all of them were environment variables."""
    flat: dict[str, str] = {}
    for raw in variables.values():
        upper = {name.upper() for name in raw}
        flat = {name: text for name, text in flat.items() if name.upper() not in upper}
        flat |= {name: each.text for name, each in raw.items()}
    return flat


def places_of(variables: Mapping[str, Mapping[str, RawValue]]) -> dict[str, str]:
    """Return name, in upper case → the place with the highest precedence that sets it."""
    return {name.upper(): str(each.source) for raw in variables.values() for name, each in raw.items()}


def _is_relevant(name: str) -> bool:
    return name.upper().startswith(PREFIX) or name in WITHOUT_PREFIX


def _read_dotenv(path: Path, process: Mapping[str, str], report: Report) -> dict[str, RawValue]:
    shown = show_path(path.absolute())
    try:
        data = contents_of(path)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        report.add(Source(shown, data.count(b"\n", 0, error.start) + 1, 1), "is not UTF-8; save it as UTF-8")
        return {}
    except OSError as error:
        report.add(Source(shown), f"cannot be read: {error.strerror or message_of(error)}")
        return {}
    lines = re.split(r"\r\n|\n|\r", text)  # as the parser splits them
    report.texts[shown] = "\n".join(map(_without_value, lines))
    found: dict[str, RawValue] = {}
    try:
        variables = list(lines_of(text, process))
    except ValueError as error:
        report.add(Source(shown), message_of(error))
        return {}
    for number, name, value, written, unknown, is_too_long in variables:
        if not name and PREFIX in written.upper():
            report.add(
                Source(shown, number, 1), "cannot be parsed; use NAME=value, quoted if the value contains spaces"
            )
        if not name or not _is_relevant(name):
            continue
        line = lines[number - 1] if number <= len(lines) else ""
        source = Source(shown, number, line.find(name) + 1 or 1, by=name, width=len(name))
        if is_too_long:
            report.add(source, f"the references of this file add up to more than {MOST_ADDED:,} characters; use fewer")
        elif value is None:
            report.add(source, "has no value; use NAME=value, or remove it")
        elif unknown:
            report.add(source, "refers to a variable that is not set; use ${NAME:-} if it may be missing")
        elif name in found:
            report.add(source, f"duplicate variable (first at line {found[name].source.line}); keep one of them")
        elif _check_effective(name, source, report):
            found[name] = RawValue(value, source)
    return found


def _check_effective(name: str, source: Source, report: Report) -> bool:
    if name.upper() not in (env_file.variable, secrets_dir.variable):
        return True
    report.add(source, "has no effect here, since it locates variables; set it in the environment of the process")
    return False


def _without_value(line: str) -> str:
    """Return a line of a `.env` file as messages show it: only the name of a variable of opero."""
    name = re.match(r"\s*(?:export\s+)?['\"]?(?:OPERO_\w*|ENVIRONMENT\b)['\"]?\s*=?", line, re.IGNORECASE)
    return f"{name[0]}…" if name else "…"


def secret_files(held_in: Iterable[Path]) -> Iterator[Path]:
    """Yield the files of variables in the directories among these paths."""
    for folder in held_in:
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if _is_relevant(path.name))


def _read_secrets(folder: Path, report: Report) -> dict[str, RawValue]:
    found: dict[str, RawValue] = {}
    try:
        paths = list(secret_files([folder]))
    except OSError as error:
        raise error_at(show_path(folder.absolute()), f"cannot be read: {error.strerror}") from error
    for path in paths:
        source = Source(show_path(path.absolute()))
        try:
            if path.exists() and not path.is_file():
                report.add(source, "is not a file, so it cannot hold a variable's value; remove it")
            elif path.stat().st_size > LARGEST_SECRET:
                report.add(source, f"is larger than {LARGEST_SECRET} bytes, the limit for a secret; remove it")
            elif _check_effective(path.name, source, report):
                found[path.name] = RawValue(path.read_text("utf-8-sig").strip("\r\n"), source)
        except UnicodeDecodeError:
            report.add(source, "is not UTF-8; save it as UTF-8")
        except OSError as error:
            report.add(source, f"cannot be read: {error.strerror or message_of(error)}")
    return found
