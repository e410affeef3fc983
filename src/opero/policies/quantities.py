"""Numbers, durations, rates and sizes, and their text formats.

One regular expression defines the text that a field accepts, for both the parser and the JSON Schema of the files. It
is plain ASCII and limits the number of digits, so that matching text is a finite number, and positive if required.
At each place it can go on in one way only, so that matching takes time linear in the length of a text, in editors too:
two repetitions that may match the same never follow each other or contain one another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from opero.errors import described, nearest
from opero.problems import HIDDEN as HIDDEN
from opero.problems import without_password as without_password

DurationLike = float | str | timedelta
"""The types that code may pass for a duration; the field holds float seconds."""

UNITS = {
    "us": 1e-6,
    "µs": 1e-6,  # the micro sign
    "μs": 1e-6,  # the Greek letter
    **dict.fromkeys(("microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
ISO_UNITS = {"w": 7 * 86400.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
MOST_BITS = 13_000
"""Larger integers, of some 4,000 digits, are refused: Python does not write them as decimals unless told to."""
LONGEST = 36500 * 86400.0
"""100 years: the longest time in seconds. Every clock, timer and date can hold it."""
SIZES = {
    **dict.fromkeys(("", "b"), 1),
    **dict.fromkeys(("kb", "k"), 10**3),
    **dict.fromkeys(("mb", "m"), 10**6),
    **dict.fromkeys(("gb", "g"), 10**9),
    **dict.fromkeys(("tb", "t"), 10**12),
    **dict.fromkeys(("kib", "ki"), 2**10),
    **dict.fromkeys(("mib", "mi"), 2**20),
    **dict.fromkeys(("gib", "gi"), 2**30),
    **dict.fromkeys(("tib", "ti"), 2**40),
}
"""Units of sizes, as bytes are counted and as Kubernetes writes them."""


def any_case(words: Iterable[str]) -> str:
    """Return a pattern that matches any of these words in upper or lower case, the longest first."""

    def letter(each: str) -> str:
        return f"[{each}{each.upper()}]" if each.isascii() and each.isalpha() else each

    ordered = sorted(words, key=lambda word: (-len(word), word))
    return f"({'|'.join(''.join(map(letter, word)) for word in ordered)})"


SPACE = r"[ \t\r\n]*"
EXPONENT = r"([eE][+-]?[0-9]{1,2})?"
NUMBER = rf"([0-9]{{1,20}}(\.[0-9]{{0,20}})?|\.[0-9]{{1,20}}){EXPONENT}"
ZERO = rf"(0{{1,20}}(\.0{{0,20}})?|\.0{{1,20}}){EXPONENT}"
NOT_ZERO = rf"(?!{ZERO}([^0-9.eE]|$))"
UNIT = any_case(UNITS)
PARTS = rf"({NUMBER}{SPACE}|({NUMBER}{SPACE}{UNIT}{SPACE})+)"
POSITIVE_PARTS = rf"(?!({ZERO}{SPACE}|({ZERO}{SPACE}{UNIT}{SPACE})+)$){PARTS}"

ISO_NUMBER = r"[0-9]{1,20}([.,][0-9]{1,20})?"
_HOURS, _MINUTES, _SECONDS_OF = (rf"{ISO_NUMBER}[{each}]" for each in ("hH", "mM", "sS"))
_ISO_TIME = rf"[tT]({_HOURS}({_MINUTES})?({_SECONDS_OF})?|{_MINUTES}({_SECONDS_OF})?|{_SECONDS_OF})"
ISO_PARTS = (
    rf"[pP]({ISO_NUMBER}[wW]({ISO_NUMBER}[dD])?({_ISO_TIME})?|{ISO_NUMBER}[dD]({_ISO_TIME})?|{_ISO_TIME}){SPACE}"
)
"""A duration of ISO 8601 without years and months, whose length is not fixed: PT10S, P1DT12H."""
POSITIVE_ISO_PARTS = rf"(?=[pPtTwWdDhHmMsS0.,]*[1-9]){ISO_PARTS}"

POSITIVE_NUMBER_TEXT = rf"^{SPACE}\+?{NOT_ZERO}{NUMBER}{SPACE}$"
DURATION_TEXT = rf"^{SPACE}\+?({PARTS}|{ISO_PARTS})$"
POSITIVE_DURATION_TEXT = rf"^{SPACE}\+?({POSITIVE_PARTS}|{POSITIVE_ISO_PARTS})$"
_RATE = rf"\+?{NOT_ZERO}{NUMBER}{SPACE}(/{SPACE}({any_case(UNITS)}{SPACE}|{POSITIVE_PARTS}))?"
RATE_TEXT = rf"^{SPACE}{_RATE}$"
FOUND_RATE_TEXT = rf"^{SPACE}(service|adaptive([ \t]{{1,20}}up[ \t]{{1,20}}to[ \t]{{1,20}}{_RATE})?){SPACE}$"
INTEGER = r"[0-9]{1,20}(\.0{0,20})?([eE]\+?[0-9]{1,2})?"
COUNT_TEXT = rf"^{SPACE}\+?{INTEGER}{SPACE}$"
POSITIVE_COUNT_TEXT = rf"^{SPACE}\+?{NOT_ZERO}{INTEGER}{SPACE}$"
# No fractions of a byte: three decimals of the next larger unit are at least one byte.
SIZE_TEXT = (
    rf"^{SPACE}\+?{NOT_ZERO}"
    rf"({INTEGER}{SPACE}({any_case(['b'])}{SPACE})?|[0-9]{{1,15}}(\.[0-9]{{1,3}})?{SPACE}"
    rf"{any_case(unit for unit, factor in SIZES.items() if factor > 1)}{SPACE})$"
)
FACTOR_TEXT = rf"^{SPACE}\+?0{{0,5}}[1-9][0-9]{{0,20}}(\.[0-9]{{0,20}})?([eE]\+?[0-9]{{1,2}})?{SPACE}$"
SMALL = r"[0-9](\.[0-9]{0,14})?[eE]-(0?[1-9]|[1-9][0-9])"
UP_TO_ONE = rf"(0?\.[0-9]{{1,20}}|0\.?|1(\.0{{0,20}})?|{SMALL})"
RATIO_TEXT = rf"^{SPACE}\+?{UP_TO_ONE}{SPACE}$"
PERCENT = rf"([0-9]{{1,2}}(\.[0-9]{{0,20}})?|\.[0-9]{{1,20}}|100(\.0{{0,20}})?){SPACE}%{SPACE}"
SHARE_TEXT = rf"^{SPACE}\+?{NOT_ZERO}{UP_TO_ONE}{SPACE}$"
RATIO_PERCENT_TEXT = rf"^{SPACE}\+?{PERCENT}$"
SHARE_PERCENT_TEXT = rf"^{SPACE}\+?{NOT_ZERO}{PERCENT}$"

LONGEST_QUOTED = 100
"""The most characters of a value that a message shows."""

_compiled: dict[str, re.Pattern[str]] = {}


def fits(pattern: str, value: object) -> bool:
    """Return whether a value is text that matches the pattern."""
    if not isinstance(value, str):
        return False
    compiled = _compiled.get(pattern)
    if compiled is None:
        compiled = _compiled[pattern] = re.compile(pattern)
    return compiled.search(value) is not None


def _usual(text: str) -> tuple[str, str]:
    """Return the digits and the rest of text such as "30s" or "50%"; "" and all of it for other text.

    Most texts are of that kind. Compiling the expressions for all others takes a tenth of the time of a first call.
    """
    rest = text.lstrip("0123456789")
    digits = text[: len(text) - len(rest)]
    return (digits, rest) if len(digits) <= 20 and digits.strip("0") else ("", text)


def is_usual_duration(value: object) -> bool:
    """Return whether a value is text such as "30s", which most durations are: digits and a unit."""
    return isinstance(value, str) and _usual(value)[1] in UNITS


def quoted(value: object) -> str:
    """Return a value as messages show it: dates as in YAML, URLs without passwords, otherwise the repr; the contents of
    mappings, which may be secret, are not shown."""
    if isinstance(value, Mapping) and value:
        return "a mapping"
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping | list | tuple) for each in value):
        return "a list"
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return "a number of more than 3,900 digits"
    if isinstance(value, str):
        value = value[: 10 * LONGEST_QUOTED]
    return f"the date {value}" if isinstance(value, date) else described(value, LONGEST_QUOTED)


def _reject_bool(value: object) -> None:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number (YAML reads yes and on as true, no and off as false)")


def parse_number(value: object, text: str = rf"^{SPACE}\+?{NUMBER}{SPACE}$") -> float | None:
    """Return a number, or the number that text of the pattern spells; else None, also for bool and NaN."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or fits(text, value)):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # matching text is a number
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def parse_duration(value: object) -> float:
    """Return the seconds of a number, a `timedelta`, or text such as "250ms", "10 seconds", "1h30m", "PT10S"."""
    if isinstance(value, timedelta):
        number: float | None = value.total_seconds()
    else:
        number = _seconds(value) if isinstance(value, str) else parse_number(value)
    if number is not None:
        if number > LONGEST:
            raise ValueError(f'{quoted(value)} is longer than 100 years: use at most "{format_duration(LONGEST)}"')
        return number
    if isinstance(value, str):
        text = value.strip().lower()
        unknown = [unit for unit in re.findall(r"[0-9.][ \t]*([a-zµμ]+)", text) if unit not in UNITS]
        if unknown and re.fullmatch(r"([0-9.]+[ \t]*[a-zµμ]+[ \t]*)+", text):
            raise ValueError(
                f"{quoted(value)} is not a duration: unknown unit {quoted(unknown[0])}{nearest(unknown[0], UNITS)}"
            )
    raise ValueError(f'{quoted(value)} is not a duration: use seconds (30, 0.25) or "250ms", "30s", "5m", "1h30m"')


@lru_cache(maxsize=1024)  # files repeat a few values
def _seconds(text: str) -> float | None:
    digits, unit = _usual(text)
    if digits and unit in UNITS:
        return float(digits) * UNITS[unit]
    if not fits(DURATION_TEXT, text):
        return None
    lower = text.strip().removeprefix("+").lower()
    if lower.startswith("p"):
        found = re.findall(rf"({ISO_NUMBER})([wdhms])", lower)
        return sum(float(amount.replace(",", ".")) * ISO_UNITS[unit] for amount, _, unit in found)
    parts = re.findall(rf"({NUMBER}){SPACE}{UNIT}", lower)
    return sum(float(amount) * UNITS[unit] for amount, *_, unit in parts) if parts else float(text)


def format_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` converts to exactly this number: 1800.0 → "30m"."""
    for unit in ("d", "h", "m", "s", "ms"):
        amount = seconds / UNITS[unit]
        if 1 <= amount < 1e15 and amount == int(amount) and int(amount) * UNITS[unit] == seconds:
            return f"{int(amount)}{unit}"
    return f"{seconds!r}s"


def approximate_duration(seconds: float) -> str:
    """Format a measured duration with three digits: "9.38s", "2m"."""
    return format_duration(round(seconds)) if seconds >= 100 else f"{seconds:.3g}s"


def parse_rate(value: object) -> float:
    """Convert a number, or text such as "50/s", "1000/min", "100/30s", to permits per second."""
    digits, per = _usual(value) if isinstance(value, str) else ("", "")
    if digits and per[:1] == "/" and per[1:] in UNITS:
        return float(digits) / UNITS[per[1:]]
    number = parse_number(value)
    if number is None and isinstance(value, str) and fits(RATE_TEXT, value):
        amount, _, period = value.partition("/")
        word = period.strip().lower()
        number = float(amount) / (UNITS[word] if word in UNITS else parse_duration(period))
    if number is not None:
        if 0 < number < 1 / LONGEST:
            raise ValueError(f"{quoted(value)} is invalid: there must be a permit within 100 years")
        return number
    raise ValueError(
        f'{quoted(value)} is not a rate: use permits per second (10, 0.5), "50/s", "1000/min", "100/30s", '
        '"adaptive" or "service"'
    )


ADAPTIVE, SERVICE = "adaptive", "service"


def parse_rate_or_found(value: object) -> float | str:
    """Convert a rate to permits per second; "service", "adaptive" and "adaptive up to 200/s" stay text."""
    is_found = isinstance(value, str) and value.lstrip().startswith((ADAPTIVE, SERVICE))
    if not is_found or not fits(FOUND_RATE_TEXT, value):
        if is_found:
            raise ValueError(f'{quoted(value)} is not a rate: use "adaptive", "adaptive up to 200/s" or "service"')
        return _positive(parse_rate(value))
    text = " ".join(str(value).split())
    if text not in (ADAPTIVE, SERVICE):
        _positive(parse_rate(text.removeprefix("adaptive up to")))
    return text


def fastest(rate: float | str) -> float | None:
    """Return the permits per second that a rate allows at most; None if there is no limit."""
    if isinstance(rate, str):
        return parse_rate(text) if (text := rate.removeprefix("adaptive up to")) != rate else None
    return rate


def parse_size(value: object) -> int:
    """Convert a number of bytes, or text such as "512MB", "2GiB", to bytes."""
    number = parse_number(value) if not isinstance(value, str) else None
    if number is not None and number == int(number):
        return int(value)  # type: ignore[call-overload,no-any-return]  # the float may have lost digits
    if isinstance(value, str) and fits(SIZE_TEXT, value):
        text = value.strip().lower()
        unit = re.findall("[a-z]*$", text)[0]
        return int(Decimal(text.removesuffix(unit).strip()) * SIZES[unit])
    raise ValueError(f'{quoted(value)} is not a size: use bytes or "512MB", "2GiB"')


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError(f"{value:g} is negative: use a value >= 0")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError(f"{value:g} is invalid: use a value > 0")
    return value


def named_schema(name: str, choices: list[dict[str, Any]], *examples: Any) -> WithJsonSchema:
    """Return the JSON Schema of a field with several forms; fields share it by its name."""
    return WithJsonSchema({"title": name, "anyOf": choices, **({"examples": list(examples)} if examples else {})})


def number_or_text(name: str, number: dict[str, Any], text: str, *examples: Any) -> WithJsonSchema:
    """Return the JSON Schema of a field that takes a number, or text that matches a pattern."""
    return named_schema(name, [number, {"type": "string", "pattern": text}], *examples)


def _integer(least: int, text: str) -> BeforeValidator:
    advice = f"use an integer >= {least}"

    def check(value: object) -> object:
        _reject_bool(value)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            return int(value)
        if isinstance(value, str):
            if fits(text, value):
                return int(Decimal(value.strip()))
            raise ValueError(f"{quoted(value)} is invalid: {advice}")
        if isinstance(value, int) and value.bit_length() <= MOST_BITS:
            return value
        raise ValueError(f"{quoted(value)} is not an integer: {advice}")

    return BeforeValidator(check)


def _number(text: str, advice: str) -> BeforeValidator:
    def check(value: object) -> float:
        _reject_bool(value)
        number = parse_number(value, text)
        if number is None:
            raise ValueError(f"{quoted(value)} is invalid: {advice}")
        return number

    return BeforeValidator(check)


def share_of(value: object) -> float:
    """Return a share above 0 from a number or a percentage."""
    _reject_bool(value)
    digits, rest = _usual(value) if isinstance(value, str) else ("", "")
    if rest == "%" and 0 < len(digits) <= 2:
        return float(digits) / 100
    if isinstance(value, str) and fits(SHARE_PERCENT_TEXT, value):
        return float(value.strip().rstrip("%")) / 100
    number = parse_number(value, SHARE_TEXT)
    if number is None:
        raise ValueError(f'{quoted(value)} is invalid: use a number > 0 and <= 1, such as 0.5, or a percentage ("50%")')
    return number


def ratio_of(value: object) -> float:
    """Return a share of 0 or more from a number or a percentage."""
    _reject_bool(value)
    if isinstance(value, str) and fits(RATIO_PERCENT_TEXT, value):
        return float(value.strip().rstrip("%")) / 100
    number = parse_number(value, RATIO_TEXT)
    if number is None:
        raise ValueError(f'{quoted(value)} is invalid: use a number from 0 to 1, such as 0.1, or a percentage ("10%")')
    return number


_SECONDS = {"type": "number", "minimum": 0, "maximum": LONGEST}
POSITIVE_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST}
_PERMITS = {"type": "number", "minimum": 1 / LONGEST}
_DURATIONS = ("250ms", "30s", "5m", "1h30m")
_FROM_0 = {"type": "integer", "minimum": 0}
_FROM_1 = {"type": "integer", "minimum": 1}

Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    AfterValidator(_not_negative),
    number_or_text("Duration", _SECONDS, DURATION_TEXT, *_DURATIONS),
]
PositiveDuration = Annotated[
    float,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    number_or_text("PositiveDuration", POSITIVE_SECONDS, POSITIVE_DURATION_TEXT, *_DURATIONS),
]
StatedRate = Annotated[
    float,
    BeforeValidator(parse_rate),
    AfterValidator(_positive),
    named_schema("StatedRate", [_PERMITS, {"type": "string", "pattern": RATE_TEXT}], 10, "50/s", "1000/min", "100/30s"),
]
Rate = Annotated[
    float | str,
    BeforeValidator(parse_rate_or_found),
    named_schema(
        "Rate",
        [_PERMITS, {"type": "string", "pattern": RATE_TEXT}, {"type": "string", "pattern": FOUND_RATE_TEXT}],
        10,
        "50/s",
        "1000/min",
        "100/30s",
        "adaptive",
        "adaptive up to 200/s",
        "service",
    ),
]
Factor = Annotated[
    float,
    Field(ge=1),
    _number(FACTOR_TEXT, "use a number >= 1, such as 1.5"),
    number_or_text("Factor", {"type": "number", "minimum": 1}, FACTOR_TEXT, 1.5, 2),
]
Ratio = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(ratio_of),
    named_schema(
        "Ratio",
        [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "pattern": RATIO_TEXT},
            {"type": "string", "pattern": RATIO_PERCENT_TEXT},
        ],
        0.1,
        "10%",
    ),
]
Share = Annotated[
    float,
    Field(gt=0, le=1),
    BeforeValidator(share_of),
    named_schema(
        "Share",
        [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "string", "pattern": SHARE_TEXT},
            {"type": "string", "pattern": SHARE_PERCENT_TEXT},
        ],
        0.5,
        "50%",
    ),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    AfterValidator(_positive),
    number_or_text("Size", _FROM_1, SIZE_TEXT, "512MB", "2GiB"),
]
Count = Annotated[int, Field(ge=0), _integer(0, COUNT_TEXT), number_or_text("Count", _FROM_0, COUNT_TEXT)]
PositiveCount = Annotated[
    int, Field(ge=1), _integer(1, POSITIVE_COUNT_TEXT), number_or_text("PositiveCount", _FROM_1, POSITIVE_COUNT_TEXT)
]


def _count_or(*words: str) -> tuple[BeforeValidator, list[dict[str, Any]]]:
    """Return what validates a field that holds an integer >= 1 or a word, and the choices of its JSON Schema."""
    pattern = rf"^{SPACE}(\+?{NOT_ZERO}{INTEGER}|{any_case(words)}){SPACE}$"
    advice = f"use an integer >= 1, {'or ' if len(words) == 1 else ''}" + " or ".join(f'"{word}"' for word in words)

    def check(value: object) -> int | str:
        if isinstance(value, str) and fits(pattern, value):
            text = value.strip()
            return text.lower() if text.lower() in words else int(Decimal(text))
        number = parse_number(value) if not isinstance(value, str) else None
        if number is not None and number >= 1 and number == int(number):
            return int(value)  # type: ignore[call-overload,no-any-return]  # the float may have lost digits
        raise ValueError(f"{quoted(value)} is invalid: {advice}")

    return BeforeValidator(check), [
        _FROM_1,
        *({"const": word} for word in words),
        {"type": "string", "pattern": pattern},
    ]


_OR_AUTO, _OR_ADAPTIVE, _OR_EITHER = _count_or("auto"), _count_or("adaptive"), _count_or("auto", "adaptive")
CountOrAuto = Annotated[int | Literal["auto"], _OR_AUTO[0], named_schema("CountOrAuto", _OR_AUTO[1])]
CountOrAdaptive = Annotated[
    int | Literal["adaptive"], _OR_ADAPTIVE[0], named_schema("CountOrAdaptive", _OR_ADAPTIVE[1])
]
WorkerCount = Annotated[int | Literal["auto", "adaptive"], _OR_EITHER[0], named_schema("WorkerCount", _OR_EITHER[1])]
