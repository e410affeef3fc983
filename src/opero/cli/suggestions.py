"""Makes the first policies of what the clients of a program have done: `opero init --from app.py`."""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from opero.config.document import CLIENT_LIBRARIES
from opero.dataclass import dataclass
from opero.errors import visible
from opero.integrations.http_clients import IDEMPOTENT
from opero.integrations.models import METHODS
from opero.integrations.request_log import URLLIB

if TYPE_CHECKING:
    from pathlib import Path

RETRIED = ("transient", "throttled", "unknown")
"""The kinds of failures that are retried by default."""
NICE = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 450, 600, 900, 1200, 1800, 3600)
"""Seconds that a timeout may be: a few requests say little of the slowest one, so they begin with some."""
LOSS = 1 / 1000
"""The share of calls that may fail in the end, of which the number of retries follows."""
FEWEST, MOST = 3, 8
"""The fewest retries that are suggested, which are the default, and the most."""
ROOM = 3
"""How many times as long as the slowest answer an attempt may take, and a call as an attempt."""
LONGEST_DELAY = 30
"""The default of max_delay, in seconds."""
WIDTH = 100
"""The most characters of a line of a comment."""
MODEL_LIBRARIES = ("anthropic", "openai")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that a client has sent. See `opero.integrations.request_log`."""

    library: str
    host: str
    method: str
    started: float
    seconds: float
    kind: str | None = None
    reason: str = ""
    wait: float | None = None

    @property
    def ended(self) -> float:
        return self.started + self.seconds


def read_requests(path: Path) -> dict[str, list[Request]]:
    """Return library → its requests."""
    found: dict[str, list[Request]] = {}
    for line in path.read_text("utf-8").splitlines():
        request = Request(**json.loads(line))
        found.setdefault(request.library, []).append(request)
    return dict(sorted(found.items()))


def policies_text(program: str, found: dict[str, list[Request]]) -> str:
    """Return the text of base.yaml.

    Args:
        program: the program, as the command line names it.
        found: library → its requests.
    """
    program = " ".join(visible(program).split())
    every = [each for requests in found.values() for each in requests]
    about = (
        f"Written by `opero init --from {json.dumps(program)}`, of {_counted(len(every), 'request')} in "
        f"{_shown(_span(every))}. The comments say what each value follows from. Correct what you know better, then "
        "run the program under these policies:"
    )
    lines = ["# yaml-language-server: $schema=schema.json", *_comment(about, f"opero run {program}"), "policies:"]
    bound = []
    for library, requests in found.items():
        name = _profile_of(library)
        once = [each for each in requests if each.method.upper() not in IDEMPOTENT]
        if library in CLIENT_LIBRARIES:
            bound.append(f"  {library}: {name} # all clients of {library} that the program makes")
        elif not once:
            bound.append(f'  "{library}": {name}')
        else:
            bound.append(f"  # {library} has sent {_counts(each.method for each in once)}, which a retry would repeat.")
            bound.append(f'  # "{library}": {name}')
        lines += [f"  {name}:", *(f"    {line}" for line in _profile(library, requests))]
    return "\n".join([*lines, "", "imports:", *bound, ""])


def _profile(library: str, requests: Sequence[Request]) -> Iterator[str]:
    for host in sorted({each.host for each in requests}):
        yield from _comment(f"{host}: {_described([each for each in requests if each.host == host])}.")
    yield from _remarks(library, requests)
    yield from _retry(requests)
    answered = [each.seconds for each in requests if each.kind is None]
    if answered:
        attempt = _nice(ROOM * max(answered))
        yield from _comment(
            f"The slowest that succeeded took {_shown(max(answered))}: an attempt may take {ROOM} times as long, at "
            f"least {NICE[0]} s, and a call with its retries and waits {ROOM} times as long again."
        )
        yield f"timeout: {{attempt: {attempt}s, total: {_nice(ROOM * attempt + _longest_wait(requests))}s}}"
    else:
        yield from _comment("No request has succeeded, so nothing says how long one takes.", "timeout: 30s")
    each = " of a host" if len({each.host for each in requests}) > 1 else ""
    yield from _comment(f"After five calls{each} in a row that fail in spite of their retries, none for a minute.")
    yield "circuit_breaker: 5"
    yield from _limits(requests)


def _comment(text: str, value: str = "") -> Iterator[str]:
    """Yield a comment, and a value that is commented out."""
    yield from (f"# {line}" for line in textwrap.wrap(text, WIDTH, break_long_words=False))
    if value:
        yield f"# {value}"


def _remarks(library: str, requests: Sequence[Request]) -> Iterator[str]:
    methods = METHODS if library in MODEL_LIBRARIES else IDEMPOTENT
    once = [each.method for each in requests if each.method.upper() not in methods]
    if once and library != URLLIB:
        yield from _comment(f"{_counts(once)}: not idempotent, so sent once unless no connection could be made.")
    for kind, advice in (("denied", "check the keys"), ("permanent", "correct the requests")):
        reasons = [each.reason for each in requests if each.kind == kind]
        if reasons:
            yield from _comment(f"{_counts(reasons)}: {kind}, so not sent again; {advice}.")


def _retry(requests: Sequence[Request]) -> Iterator[str]:
    failed = [each.reason for each in requests if each.kind in RETRIED]
    share = len(failed) / len(requests)
    longest = _longest_wait(requests)
    if not failed:
        yield from _comment("The default: no request has failed for a reason that passes.")
        yield f"retry: {FEWEST}"
        return
    needed = MOST if share == 1 else math.ceil(math.log(LOSS) / math.log(share)) - 1
    retries = min(max(needed, FEWEST), MOST)
    lost = _lost(share ** (retries + 1))
    yield from _comment(
        f"{share:.0%} failed for a reason that passes ({_counts(failed)}), so with {retries} retries {lost}."
    )
    if longest > LONGEST_DELAY:
        yield from _comment(f"The service has asked to wait {_shown(longest)}.")
        yield f"retry: {{retries: {retries}, max_delay: {_nice(longest)}s}}"
    else:
        yield f"retry: {retries}"


def _lost(share: float) -> str:
    lost = round(share * 1000)
    return f"about {lost} of 1,000 calls {'fails' if lost == 1 else 'fail'}" if lost else "hardly a call fails"


def _limits(requests: Sequence[Request]) -> Iterator[str]:
    throttled = [each.reason for each in requests if each.kind == "throttled"]
    if throttled and len(throttled) < len(requests):
        rate = (len(requests) - len(throttled)) / max(_span(requests), 1)
        yield from _comment(
            f"The service has refused {len(throttled)} of {len(requests)} ({_counts(throttled)}): this is the rate of "
            "the others."
        )
        yield f"rate_limit: {f'{math.floor(rate)}/s' if rate >= 1 else f'{max(1, math.floor(rate * 60))}/min'}"
    else:
        busiest = Counter(int(each.started) for each in requests).most_common(1)[0][1]
        yield from _comment(
            "Off: the service has refused none, so its limit is not known. This is the most in one second.",
            f"rate_limit: {busiest}/s",
        )
    yield from _comment("Off: the most at once, of which none was refused.", f"bulkhead: {_at_once(requests)}")


def _at_once(requests: Iterable[Request]) -> int:
    moments = sorted(moment for each in requests for moment in ((each.started, 1), (each.ended, -1)))
    most = now = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def _described(requests: Sequence[Request]) -> str:
    failed = [each.reason for each in requests if each.kind is not None]
    return f"{_counted(len(requests), 'request')}, " + (
        f"{len(failed)} failed: {_counts(failed)}" if failed else "none failed"
    )


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in Counter(names).most_common())


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _span(requests: Sequence[Request]) -> float:
    return max(each.ended for each in requests) - min(each.started for each in requests)


def _longest_wait(requests: Sequence[Request]) -> float:
    return max((each.wait for each in requests if each.wait is not None), default=0)


def _nice(seconds: float) -> int:
    """Return the next number of seconds that one would write down."""
    return next((each for each in NICE if each >= seconds), math.ceil(seconds))


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _profile_of(library: str) -> str:
    return library.partition(".")[0]


def summary(found: dict[str, list[Request]]) -> list[dict[str, Any]]:
    """Return what the clients of each library have sent, as plain data."""
    return [
        {
            "library": library,
            "profile": _profile_of(library),
            "requests": len(requests),
            "failures": sum(each.kind is not None for each in requests),
            "hosts": sorted({each.host for each in requests}),
        }
        for library, requests in found.items()
    ]
