"""The variables that count: of the process, of a `.env` file, and of a directory of secrets."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from opero.config.environment import PREFIX, Said, said_by_process
from opero.config.location import show_path
from opero.config.sources import Source
from opero.environ import env_file, secrets_dir
from opero.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from opero.config.report import Report

__all__ = ["collect_variables", "flatten"]

ALSO_OURS = ("ENVIRONMENT",)
"""Variables without our prefix that a `.env` file or a secret may set, too."""
LARGEST_SECRET = 1 << 16


def collect_variables(
    environ: Mapping[str, str] | None, dotenv: str | Path | None, secrets: str | Path | None, report: Report
) -> tuple[dict[str, dict[str, Said]], list[Path]]:
    """What holds variables → these, lowest precedence first; and the files and directories among what holds them.

    Args:
        environ: the environment variables; None: the process's own. Where they are given, `./.env` and /run/secrets are
            read only if somebody names them.
        dotenv, secrets: the `.env` file and the directory of secrets, as given in code (see `opero.environ`).
        report: takes what cannot be read, and the file's text.

    Raises:
        ConfigError: a file or directory that was named does not exist.
    """
    process = os.environ if environ is None else environ
    implied = environ is None
    found: dict[str, dict[str, Said]] = {}
    held_in: list[Path] = []
    folder = secrets_dir(process, secrets, implied=implied)
    if folder is not None:
        held_in.append(folder.absolute())
        found[f"secrets in {show_path(held_in[-1])}"] = _read_secrets(folder, report)
    path = env_file(process, dotenv, implied=implied)
    if path is not None:
        held_in.append(path.absolute())
        found[show_path(held_in[-1])] = _read_dotenv(path, report)
    found["environment variables"] = {
        **said_by_process(process),
        **{name: Said(process[name], Source(name)) for name in ALSO_OURS if name in process},
    }
    return found, held_in


def flatten(variables: Mapping[str, Mapping[str, Said]]) -> dict[str, str]:
    """Name → text, as if all of them were environment variables."""
    flat: dict[str, str] = {}
    for said in variables.values():
        upper = {name.upper() for name in said}
        flat = {name: text for name, text in flat.items() if name.upper() not in upper}
        flat |= {name: each.text for name, each in said.items()}
    return flat


def _is_ours(name: str) -> bool:
    return name.upper().startswith(PREFIX) or name in ALSO_OURS


def _read_dotenv(path: Path, report: Report) -> dict[str, Said]:
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    shown = show_path(path.absolute())
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (
            "is not UTF-8; save it as UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else f"cannot be read: {error.strerror}"
        )
        report.add(Source(shown), why)
        return {}
    from io import StringIO

    found: dict[str, Said] = {}
    values = dotenv_values(stream=StringIO(text))  # with ${OTHER} filled in
    lines = text.splitlines()
    for binding in parse_stream(StringIO(text)):
        written = binding.original.string.lstrip("\n")
        number = binding.original.line + len(binding.original.string) - len(written)
        if binding.error:
            if PREFIX in written.upper():
                report.add(
                    Source(shown, number, 1), "cannot be read; write NAME=value, in quotes where it holds spaces"
                )
            continue
        name = binding.key
        if name is None or not _is_ours(name):
            continue
        line = lines[number - 1] if number <= len(lines) else ""
        source = Source(shown, number, line.find(name) + 1 or 1, by=name, width=len(name))
        value = values.get(name)
        if value is None:
            report.add(source, "has no value; write NAME=value, or remove it")
        elif name in found:
            report.add(source, f"is also set in line {found[name].source.line}; keep one of them")
        else:
            found[name] = Said(value, source)
    report.texts[shown] = "\n".join(map(_without_value, lines))
    return found


def _without_value(line: str) -> str:
    """A line of a `.env` file as messages show it: our own names alone, since any value may be secret."""
    name = re.match(r"\s*(?:export\s+)?['\"]?(?:OPERO_\w*|ENVIRONMENT\b)['\"]?\s*=?", line, re.IGNORECASE)
    return f"{name[0]}…" if name else "…"


def _read_secrets(folder: Path, report: Report) -> dict[str, Said]:
    found: dict[str, Said] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if _is_ours(path.name))
    except OSError as error:
        raise ConfigError(f"secrets_dir: {show_path(folder.absolute())} cannot be read: {error.strerror}") from error
    for path in paths:
        source = Source(show_path(path.absolute()))
        try:
            if not path.is_file():
                continue
            if path.stat().st_size > LARGEST_SECRET:
                report.add(source, f"is larger than {LARGEST_SECRET} bytes, and so no variable's value; remove it")
                continue
            found[path.name] = Said(path.read_text("utf-8").strip("\r\n"), source)
        except UnicodeDecodeError:
            report.add(source, "is not UTF-8; save it as UTF-8")
        except OSError as error:
            report.add(source, f"cannot be read: {error.strerror}")
    return found
