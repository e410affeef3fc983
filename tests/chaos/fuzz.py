"""Feeds every reader of opero with changed examples: no crash, no error without a place, nothing slower than linear.

Examples are what policies/, docs/ and the tests hold. Some are changed at a few places and read once; in others a few
characters are repeated more and more often, and the times compared. Only the errors that a reader documents may come
out, and those of files and variables say where. What is signed or has a checksum never reads as another value.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.chaos.harness import Chaos, begin
from tests.chaos.readers import Reader, readers

MEMORY = 6 << 30
"""Bytes of address space, so that a reader without bounds ends with a MemoryError, and the machine does not."""
ENOUGH, MOST = 0.05, 10.0
"""Seconds of CPU from which on times are compared; and how much longer four times the text may take (linear: 4)."""
HANGS = 60
"""Seconds of CPU that no reader takes for texts of this program's."""

TOKENS = [
    *"{}[]()<>:;,.'\"\\#&*!|%@`~?$=+-_/ \t\n\r\0\x01\x1b\x7f\x85\u2028\ufeff\ud800é😀",
    *("0", "1", "-1", "1e999", "nan", "inf", "9" * 25, "0x" + "f" * 30, "1_000", "٣", "null", "true", "~", ".", ".."),
    *(
        "5s",
        "1h30m",
        "10/s",
        "5%",
        "1GB",
        "auto",
        "json:dumps",
        "ValueError?",
        "*:*",
        "m:f",
        "a.b",
        "secret:X",
        "file:",
    ),
    *(
        "policies:",
        "defaults:",
        "functions:",
        "extends: ",
        "alerts:",
        "retry:",
        "cache:",
        "<<: ",
        "&a ",
        "*a",
        "!!str ",
    ),
    *("${A}", "${", "$", "export ", "OPERO_", "__", "POLICIES", "GMT", "Wed, 21 Oct 2026 07:28:00 GMT", "T", "Z", "%"),
]


# Attacks


def mutated(chaos: Chaos, reader: Reader) -> str:
    chance, text = chaos.random, chaos.random.choice(reader.examples)
    if len(text) > 3000:  # a part of a long file is read sooner
        lines = text.splitlines(keepends=True)
        at = chance.randrange(len(lines))
        text = "".join(lines[at : at + 60]) or text[:3000]
    for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):
        at = chance.randint(0, len(text))
        end = min(len(text), at + chance.choice([0, 1, 1, 2, 5, 20]))
        kind = chance.randrange(7)
        if kind == 0:
            text = text[:at] + text[end:]
        elif kind == 1:
            text = text[:at] + chance.choice(TOKENS) + text[end:]
        elif kind == 2:
            text = text[:at] + chance.choice(TOKENS) + text[at:]
        elif kind == 3 and at < len(text):
            text = text[:at] + chr(ord(text[at]) ^ (1 << chance.randrange(8))) + text[at + 1 :]
        elif kind == 4:
            text = text[:end] + text[at:end] * chance.choice([1, 2, 50]) + text[end:]
        elif kind == 5:
            other = chance.choice(reader.examples)
            start = chance.randint(0, len(other))
            text = text[:at] + other[start : start + 40] + text[end:]
        else:
            lines = text.split("\n")
            chance.shuffle(lines)
            text = "\n".join(lines)
    return text[:20_000]


def pumped(chaos: Chaos, reader: Reader) -> Callable[[int], str]:
    """A text in which a few characters are repeated until it has a length."""
    chance, text = chaos.random, chaos.random.choice(reader.examples)[:500]
    at = chance.randint(0, len(text))
    pump = text[at : at + chance.choice([1, 1, 2, 4, 12, 40])] or "0"
    if chance.random() < 0.4:
        pump = "".join(chance.choices(TOKENS, k=chance.choice([1, 1, 2, 3])))
    before, after = text[:at], chance.choice(["", "!", text[at:], chance.choice(TOKENS)])
    return lambda size: before + pump * (size // len(pump) + 1) + after


def seconds_for(reader: Reader, text: str) -> float:
    began = time.process_time()
    reader.attempt(text)
    return time.process_time() - began


def is_slow(reader: Reader, text_of: Callable[[int], str]) -> str:
    """What shows that reading takes more than linear time; "" if nothing does."""
    size, before = 500, 0.0
    while size <= reader.most:
        text = text_of(size)
        taken = seconds_for(reader, text)
        if before >= ENOUGH and taken > MOST * before:
            # The least of some, as other programs run as well.
            taken = min(taken, *(seconds_for(reader, text) for _ in range(3)))
            if taken > MOST * before:
                return f"{before:.3f} s for {size // 4} characters and {taken:.3f} s for {size}, such as {text[:200]!r}"
        if taken > 1:
            return ""
        size, before = 4 * size, taken
    return ""


def hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"a reader has not ended within {HANGS} s of CPU")


def main() -> int:
    faulthandler.enable()
    faulthandler.dump_traceback_later(10 * HANGS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger("opero").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    chaos = begin(__file__, __doc__)
    folder = Path(tempfile.mkdtemp(prefix="opero-fuzz-"))
    signal.signal(signal.SIGPROF, hangs)
    found: set[tuple[str, str]] = set()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            all_readers = readers(folder)
            while chaos.goes_on():
                attack(chaos, chaos.random.choice(all_readers), found)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(folder, ignore_errors=True)
    chaos.count("readers", len(all_readers))
    return chaos.end()


def attack(chaos: Chaos, reader: Reader, found: set[tuple[str, str]]) -> None:
    faulthandler.dump_traceback_later(10 * HANGS)  # begins anew
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    text = ""
    try:
        for _ in range(15):
            text = mutated(chaos, reader)
            wrong = reader.attempt(text)
            chaos.count("texts")
            if wrong is not None and (reader.name, wrong[:40]) not in found:
                found.add((reader.name, wrong[:40]))
                chaos.lose(f"{reader.name}: {wrong}; read from {text[:2000]!r}")
        text_of = pumped(chaos, reader)
        text = text_of(500)
        slow = is_slow(reader, text_of)
        chaos.count("growing texts")
        if slow and (reader.name, "slow") not in found:
            found.add((reader.name, "slow"))
            chaos.lose(f"{reader.name}: slower than linear: {slow}")
    except BaseException as error:
        chaos.lose(f"{reader.name}: {type(error).__name__}: {error}; read from {text[:2000]!r}")
        if isinstance(error, KeyboardInterrupt):
            raise
    signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main())
