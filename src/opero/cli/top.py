"""`opero top`: shows a running program in the terminal, as its live page does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import typer

from opero.cli.exits import UsageError
from opero.cli.options import Json  # noqa: TC001  # typer reads the annotation
from opero.cli.terminal import print_json, print_table, say
from opero.errors import one_line, shortened

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT = "http://127.0.0.1:9300/opero"
PATIENCE = 5.0
LARGEST = 64_000_000
COLUMNS = ("name", "calls/s", "failing", "p50", "p99", "retries", "cached", "state")
EVENTS_SHOWN = 10


def top_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL|PID]", help="The address of the page, or the number of the process. Default: the only one."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the state once and end.")] = False,
    as_json: Json = False,
) -> int:
    """Show what the functions of a running program do, each second.

    The program serves its live page: by opero.serve(), OPERO_SERVE, or an app that is mounted in its server. The
    busiest functions come first. Ctrl-C ends it. If the output is not a terminal, the state is printed once.

    \b
    opero top
    opero top 4711
    opero top http://127.0.0.1:8000/internal/opero
    """
    url = address_of(target)
    found = state_at(url)
    if as_json:
        print_json(found)
    elif once or not sys.stdout.isatty():
        say(title(found), "bold")
        say()
        print_table(COLUMNS, rows(found))
        for text in events(found):
            say(text)
    else:
        _follow(url, found)
    return 0


def address_of(target: str | None) -> str:
    """Return the address of the page of a process, or an address in its whole form.

    Raises:
        UsageError: no such process is served, or several are.
    """
    from opero.integrations.web.addresses import found_addresses

    if target is not None and not target.isdecimal():
        url = target if "://" in target else f"http://{target}"
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                f"{target!r} is invalid: use the address of a page, such as {DEFAULT}, or the number of a process"
            )
        url = url.partition("#")[0].rstrip("/")
        return url if url.endswith("/opero") else f"{url}/opero"
    known = found_addresses()
    if target is None and not known:
        return DEFAULT
    chosen = [each for each in known if target is None or each.pid == int(target)]
    if len(chosen) == 1:
        return chosen[0].url
    listed = ", ".join(f"{each.pid} at {each.url}" for each in chosen or known) or "none"
    if not chosen:
        raise UsageError(
            f"process {target} is not served by opero.serve() or OPERO_SERVE here (served are: {listed}); if {target} "
            f"is a port: opero top 127.0.0.1:{target}"
        )
    raise UsageError(f"several processes are served: name one of them, or its address: {listed}")


def state_at(url: str) -> dict[str, Any]:
    """Return the state of a program.

    Raises:
        UsageError: it does not answer, or not as a live page does.
    """
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/state.json", timeout=PATIENCE) as answer:
            found = json.loads(answer.read(LARGEST))
    except HTTPError as error:
        with error:
            raise UsageError(f"{url} answers {error.code} {error.reason}{_reason(error)}") from error
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            f"{url} cannot be reached ({reason}): let the program call opero.serve(), or set "
            "OPERO_SERVE=127.0.0.1:9300 for it"
        ) from error
    except ValueError as error:
        raise UsageError(f"{url} is no live page of opero: it does not answer with JSON") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("functions", "profiles")):
        raise UsageError(f"{url} is no live page of opero")
    return found


def _reason(error: HTTPError) -> str:
    try:
        return f": {one_line(str(json.loads(error.read(10_000))['error']))}"
    except (ValueError, KeyError, TypeError, OSError):
        return ""


# What is shown


def title(found: Mapping[str, Any]) -> str:
    """Return the line above the table."""
    version = (found.get("configuration") or {}).get("version", "")
    parts = [f"{found.get('host', '')}, process {found.get('pid', '')}", found.get("environment", "")]
    parts += [f"configuration {version}" if version else "", time.strftime("%H:%M:%S", time.localtime(found["time"]))]
    return printable(" · ".join(str(each) for each in parts if each))


def rows(found: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the cells and the style of each row: profiles, then functions, the busiest first."""
    for group, style in (("profiles", "bold"), ("functions", "")):
        for name, row in sorted(found[group].items(), key=lambda item: (-_rate(item[1], "calls"), item[0])):
            held = [each["text"] for each in found.get("holds", ()) if group == "profiles" and each["profile"] == name]
            state = ", ".join([*map(str, held), *_states(row.get("state") or {})])
            grade = "red" if "circuit open" in state or "forced open" in state else style
            yield (printable(name), *_numbers(row), printable(state)), grade


def _numbers(row: Mapping[str, Any]) -> tuple[str, ...]:
    latency = row.get("latency") or {}
    calls, asked = _rate(row, "calls", "1m"), row["cache_hits"] + row["cache_misses"]
    failing = _rate(row, "failures", "1m") / calls if calls > 1e-6 else None
    cached = row["cache_hits"] / asked if asked else None
    shown = (_seconds(latency.get("p50")), _seconds(latency.get("p99")), f"{row['retries']:,}")
    return f"{_rate(row, 'calls'):,.3g}", _share(failing), *shown, _share(cached)


def _rate(row: Mapping[str, Any], what: str, span: str = "1s") -> float:
    rate = float(row.get("rates", {}).get(what, {}).get(span, 0.0))
    return rate if rate >= 0.005 else 0.0


def _states(state: Mapping[str, Any]) -> Iterator[str]:
    if circuit := state.get("circuit_breaker"):
        left = circuit.get("retry_in")
        forced = str(circuit["state"]).replace("_", " ")
        text = forced if forced.startswith("forced") or forced == "closed" else f"circuit {forced}"
        if "keys" in circuit and not forced.startswith("forced"):
            text = (
                f"circuit open for {circuit['standing_out']} of {circuit['keys']}"
                if circuit["standing_out"]
                else forced
            )
        yield f"{text}, probe in {left:.0f} s" if left else text
    if rejecting := (state.get("throttle") or {}).get("rejecting"):
        yield f"throttled, {_share(rejecting)} rejected"
    if limit := state.get("rate_limit"):
        queue = f", {limit['queue']} wait" if limit.get("queue") else ""
        paused = limit.get("paused_for") or 0.0
        used = f"paused for {paused:.0f} s" if paused >= 0.5 else _share(limit.get("saturation") or 0.0)
        yield f"limit {used}{queue}"
    if slots := state.get("bulkhead"):
        queue = f", {slots['queue']} wait" if slots.get("queue") else ""
        yield f"slots {slots['in_use']}/{slots['slots']}{queue}"


def events(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each of the last events, the newest first."""
    newest = list(found.get("events", ()))[: -EVENTS_SHOWN - 1 : -1]
    if newest:
        yield ""
    for each in newest:
        count = f" ×{each['count']}" if each["count"] > 1 else ""
        at = time.strftime("%H:%M:%S", time.localtime(each["time"]))
        what = f"{at}  {each['event'].replace('_', ' ')}  {each['function'] or each['policy']}{count}  {each['text']}"
        yield printable(shortened(what, 160))


def printable(text: str) -> str:
    """Return text without characters that would control the terminal: names and errors may be from anywhere."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    factor, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{value * factor:.3g} {unit}"


# Each second


def _follow(url: str, found: dict[str, Any]) -> None:
    from rich.live import Live

    with Live(_screen(found, ""), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            try:
                found, trouble = state_at(url), ""
            except UsageError as error:
                trouble = f"disconnected, trying again: {error}"
            live.update(_screen(found, trouble), refresh=True)


def _screen(found: Mapping[str, Any], trouble: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for name in COLUMNS:
        is_text = name in ("name", "state")
        # Text is folded: half of "circuit open" could be anything.
        side: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(name, justify=side, no_wrap=not is_text, overflow="fold", ratio=1 if is_text else None)
    for cells, style in rows(found):
        table.add_row(*map(Text, cells), style=style)
    lines = [Text(each, style="dim", no_wrap=True, overflow="ellipsis") for each in events(found)]
    head = Text(trouble or title(found), style="red" if trouble else "bold", no_wrap=True, overflow="ellipsis")
    return Group(head, Text(""), table, *lines)
