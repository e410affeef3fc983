"""Durations, rates, sizes, and things named by their import path."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from opero import RetryPolicy
from opero.failures import Kind
from opero.policies.names import Conditions, Function, dotted_name, import_path, resolve
from opero.policies.quantities import (
    LONGEST,
    Count,
    CountOrAuto,
    Duration,
    Factor,
    PositiveCount,
    PositiveDuration,
    Rate,
    Ratio,
    Share,
    Size,
    format_duration,
    parse_duration,
    parse_rate,
    parse_size,
)
from opero.policies.scope import Scope
from opero.policies.types import UNSET, Flag, FlagOrAuto, MostFailures, StatusCodes
from policies import named

NO_NUMBERS = [math.nan, math.inf, -math.inf, "nan", "inf", "-Infinity", True, False, "", "  ", None, "x", [], {}, b"3"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("250ms", 0.25),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("30s", 30.0),
        ("30 s", 30.0),
        (" 30S ", 30.0),
        ("5m", 300.0),
        ("5min", 300.0),
        ("1.5h", 5400.0),
        ("1h30m", 5400.0),
        ("1h 30m 5s", 5405.0),
        ("2d", 172800.0),
        (datetime.timedelta(minutes=2, milliseconds=5), 120.005),
    ],
)
def test_a_duration_may_be_written_in_many_ways(written: Any, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds, rel=1e-12)
    assert type(parse_duration(written)) is float


@pytest.mark.parametrize("wrong", [*NO_NUMBERS, "30x", "s", "30s!", "1h-30m", "ten", "1:30", "--3s", "1_000"])
def test_an_invalid_duration_is_rejected_with_its_value_and_examples(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(wrong)
    assert repr(wrong) in str(caught.value)


def test_an_unknown_unit_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'30secz' is not a duration: unknown unit 'secz'; did you mean 'sec'\?"):
        parse_duration("30secz")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10 seconds", 10),
        ("1 hour 30 minutes", 5400),
        ("5 MINS", 300),
        ("2 days", 172800),
        ("1.5 msec", 0.0015),
        ("PT10S", 10),
        ("PT0.5S", 0.5),
        ("pt1,5s", 1.5),
        ("P1DT12H", 129600),
        ("P2W", 1209600),
        (" +PT1H30M ", 5400),
    ],
)
def test_a_duration_may_be_written_in_words_or_as_iso_8601(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["P", "PT", "P1M", "P1Y", "PT1", "P1H", "PT1S1M", "PT-1S", "10 secondss"])
def test_what_is_no_duration_of_fixed_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0 seconds", "PT0S", "P0DT0H"])
def test_a_time_limit_of_zero_is_refused_in_any_form(text: str) -> None:
    with pytest.raises(ValueError, match="> 0"):
        validate(PositiveDuration, text)


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("2Gi", 2**31), ("512M", 512_000_000), ("1.5 TB", 1_500_000_000_000)]
)
def test_a_size_may_be_written_as_bytes_are_counted_or_as_kubernetes_does(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("kind", [Ratio, Share])
def test_a_share_may_be_a_percentage(kind: Any) -> None:
    assert validate(kind, "50%") == 0.5
    assert validate(kind, " 12.5 % ") == 0.125


@given(st.just(0.0) | st.floats(1e-99, LONGEST))
def test_a_formatted_duration_reads_back_as_the_same_number(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("seconds", [1e15, 1e99, 1e300, 1.7e308])
def test_no_duration_is_too_long_to_be_shown(seconds: float) -> None:
    assert format_duration(seconds) == f"{seconds!r}s"
    with pytest.raises(ValueError, match="is longer than 100 years"):
        RetryPolicy(min_delay=seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1800.0, "30m"), (5400.0, "90m"), (86400.0, "1d"), (0.25, "250ms"), (30.0, "30s"), (0.0, "0.0s"), (1.5, "1500ms")],
)
def test_a_duration_is_formatted_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("written", "permits"),
    [
        (10, 10.0),
        (0.5, 0.5),
        ("10", 10.0),
        ("50/s", 50.0),
        ("50 / s", 50.0),
        ("50/sec", 50.0),
        ("50/second", 50.0),
        ("60/m", 1.0),
        ("1000/min", 1000 / 60),
        ("1000/minute", 1000 / 60),
        ("7200/h", 2.0),
        ("7200/hour", 2.0),
        ("86400/d", 1.0),
        ("86400/day", 1.0),
        ("100/30s", 100 / 30),
        ("0.5/ms", 500.0),
    ],
)
def test_a_rate_may_be_written_in_many_ways(written: Any, permits: float) -> None:
    assert parse_rate(written) == pytest.approx(permits, rel=1e-12)


@pytest.mark.parametrize(
    "wrong", [*NO_NUMBERS, "50/", "/s", "50/s/s", "50/0s", "x/s", "50 per second", "5/-1s", "nan/s"]
)
def test_an_invalid_rate_is_rejected_with_its_value(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate(wrong)


@pytest.mark.parametrize("wrong", ["50/fortnight", "50/", "50/x"])
def test_a_wrong_rate_is_shown_as_a_whole(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a rate") as caught:
        parse_rate(wrong)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (512, 512),
        ("512", 512),
        (1e6, 1000000),
        ("1kB", 1000),
        ("512MB", 512 * 10**6),
        ("2GiB", 2**31),
        ("1.5 KiB", 1536),
    ],
)
def test_a_size_may_be_written_in_many_ways(written: Any, size: int) -> None:
    assert parse_size(written) == size
    assert type(parse_size(written)) is int


@pytest.mark.parametrize("wrong", [*NO_NUMBERS, "2XB", "MB", 1.5, "-1MB"])
def test_an_invalid_size_is_rejected_with_its_value(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(wrong)
    assert repr(wrong) in str(caught.value)


BAD_NUMBERS: list[tuple[Any, Any, str]] = [
    (Count, "٣", "'٣' is invalid: use an integer >= 0"),
    (Count, "1_000", "'1_000' is invalid"),
    (Count, 1.5, "1.5 is not an integer: use an integer >= 0"),
    (Count, math.inf, "inf is not an integer"),
    (PositiveCount, "0", "'0' is invalid: use an integer >= 1"),
    (Factor, "0.5", "'0.5' is invalid: use a number >= 1, such as 1.5"),
    (Factor, "NaN", "'NaN' is invalid"),
    (Factor, math.nan, "nan is invalid"),
    (Factor, 10**400, "is invalid: use a number >= 1"),
    (Share, "0", "'0' is invalid: use a number > 0 and <= 1, such as 0.5"),
    (Share, "0.0 %", "'0.0 %' is invalid"),
    (Share, "100.1%", "'100.1%' is invalid"),
    (Duration, "٣s", "'٣s' is not a duration"),
    (Duration, datetime.date(2024, 1, 1), 'the date 2024-01-01 is not a duration: use seconds .30, 0.25. or "250ms"'),
    (Duration, 10**400, "is not a duration"),
    (Rate, "٥/s", "is not a rate"),
    (Size, "1.5", "'1.5' is not a size"),
    (Size, "1.5b", "'1.5b' is not a size"),
    (CountOrAuto, "1_0", "'1_0' is invalid: use an integer >= 1, or \"auto\""),
    (MostFailures, 1.0, '1.0 is invalid: use a count .10. or a share .0.05, "5%".'),
    (MostFailures, "٥%", "is invalid: use a count"),
    (StatusCodes, "٥٠٣", "is not an HTTP status"),
    (Flag, 1, "1 is not a boolean: use true or false"),
    (Flag, "perhaps", "'perhaps' is not a boolean: use true or false"),
    (Flag, None, "None is not a boolean: use true or false"),
    (FlagOrAuto, "always", "'always' is invalid: use true, false or 'auto'"),
    (
        Scope,
        True,
        "True is not one of 'auto', 'profile', 'function' and {by: …}; YAML reads yes and on as true, no and off as",
    ),
    (Scope, "profil", "'profil' is not one of 'auto', 'profile', 'function' and {by: …}; did you mean 'profile'?"),
    (Scope, None, "None is not one of 'auto', 'profile', 'function' and {by: …}"),
    (Scope, "{by: x}", "'{by: x}' is not valid JSON"),
]


@pytest.mark.parametrize(("field", "value", "told"), BAD_NUMBERS)
def test_an_invalid_value_is_rejected_with_the_value_and_advice(field: Any, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        validate(field, value)


@pytest.mark.parametrize(
    ("field", "written", "held"),
    [
        (Count, "1e3", 1000),
        (Count, " 5\n", 5),
        (Count, "3.0", 3),
        (Count, 3.0, 3),
        (Count, 10**30, 10**30),
        (Factor, "1.5e2", 150.0),
        (Ratio, "1e-3", 0.001),
        (Share, "1.0", 1.0),
        (Share, "50%", 0.5),
        (Share, " +100 % ", 1.0),
        (Share, ".5%", 0.005),
        (Duration, "5e-3 s", 0.005),
        (Duration, "250μs", 0.00025),
        (Size, "1e3b", 1000),
        (Size, "0.001kb", 1),
        (CountOrAuto, "AUTO", "auto"),
        (CountOrAuto, "1e1", 10),
        (MostFailures, "1e-1", 0.1),
        (StatusCodes, 503.0, (503,)),
        (Flag, "On", True),
        (Flag, "0", False),
        (FlagOrAuto, "no", False),
    ],
)
def test_text_that_can_mean_but_one_thing_is_taken(field: Any, written: Any, held: Any) -> None:
    assert validate(field, written) == held
    assert type(validate(field, written)) is type(held)


def validate(field: Any, value: Any) -> Any:
    return TypeAdapter(field).validate_python(value)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (Duration, [0, "0s", 0.1, "1h"], [-1, "-1", "-1s", datetime.timedelta(seconds=-1), *NO_NUMBERS]),
        (PositiveDuration, ["1ms", 0.1], [0, "0s", -1, datetime.timedelta(), *NO_NUMBERS]),
        (Rate, [0.1, "1/h"], [0, "0/s", -1, *NO_NUMBERS]),
        (Factor, [1, 1.5, 100, "2.5"], [0.99, 0, -1, *NO_NUMBERS[:-1]]),
        (Share, [0.001, 0.5, 1, "0.5"], [0, 1.001, -0.5, *NO_NUMBERS[:-1]]),
        (Size, [1, "1B", "2GB"], [0, -1, "0MB", *NO_NUMBERS]),
        (Count, [0, 1, "3", 3.0], [-1, 1.5, "1.5", *NO_NUMBERS[:-1]]),
        (PositiveCount, [1, "3"], [0, -1, 1.5, *NO_NUMBERS[:-1]]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_numbers_have_their_range(field: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert validate(field, value) >= 0
    for value in bad:
        with pytest.raises(ValueError, match="validation error"):
            validate(field, value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("json:JSONDecodeError", json.JSONDecodeError),
        ("json.JSONDecodeError", json.JSONDecodeError),
        ("policies.named:QuotaError.HourlyError", named.QuotaError.HourlyError),
        ("policies.named.QuotaError.HourlyError", named.QuotaError.HourlyError),
        ("len", len),
        ("builtins:len", len),
    ],
)
def test_names_are_resolved(name: str, found: Any) -> None:
    assert resolve(name) is found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("json:JSONDecodeErorr", "json has no 'JSONDecodeErorr'; did you mean 'JSONDecodeError'"),
        ("json.JSONDecodeErorr", "did you mean 'JSONDecodeError'"),
        ("policies.named.QuotaErorr.HourlyError", "policies.named has no 'QuotaErorr'; did you mean 'QuotaError'"),
        ("no_such_package:thing", "No module named 'no_such_package'"),
        ("no_such_package.inner.thing", "No module named 'no_such_package'"),
        ("lenn", "'lenn' is not a builtin; did you mean 'len'"),
        ("json:", "cannot be imported"),
        ("", "is not a builtin"),
        (":", "cannot be imported|is not a builtin"),
        (".relative", "cannot be imported"),
        ("json..loads", "cannot be imported"),
    ],
)
def test_an_unresolvable_name_is_reported_with_the_nearest_one(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        resolve(name)
    assert repr(name) in str(caught.value)


def test_objects_are_serialized_by_import_path_if_they_have_one() -> None:
    for target in (OSError, json.JSONDecodeError, named.QuotaError, named.QuotaError.HourlyError, named.is_none, len):
        assert resolve(dotted_name(target)) is target
        assert resolve(import_path(target)) is target
        assert ":" in import_path(target)
    assert dotted_name(OSError) == "OSError"
    assert dotted_name(named.QuotaError) == "policies.named.QuotaError"
    for nameless in (lambda: 1, object(), validate.__get__(3).__call__):
        with pytest.raises(ValueError, match="has no import path"):
            dotted_name(nameless)


def test_a_function_that_its_name_does_not_lead_back_to_is_not_written_by_it() -> None:
    def hidden() -> None: ...

    hidden.__qualname__ = hidden.__name__ = "is_none"
    hidden.__module__ = named.__name__
    with pytest.raises(ValueError, match="has no import path"):
        dotted_name(hidden)


@pytest.mark.parametrize(
    ("written", "types"),
    [
        (OSError, (OSError,)),
        ("OSError", (OSError,)),
        ([OSError, "KeyError"], (OSError, KeyError)),
        (("KeyError", "KeyError", KeyError), (KeyError,)),
        ({KeyError}, (KeyError,)),
        ("json.JSONDecodeError", (json.JSONDecodeError,)),
        ("json.JSONDecodeError?", (json.JSONDecodeError,)),
        ("no_such_package.SomeError?", ()),
        ("no_such_package.inner:SomeError?", ()),
        (["no_such_package.SomeError?", " KeyError "], (KeyError,)),
        ("policies.named.QuotaError.HourlyError", (named.QuotaError.HourlyError,)),
        (None, ()),
        ([], ()),
        ("transient", (Kind.TRANSIENT,)),
        (["denied", Kind.DENIED, "OSError"], (Kind.DENIED, OSError)),
        ("policies.named:is_none", (named.is_none,)),
        (named.is_none, (named.is_none,)),
    ],
)
def test_exceptions_are_named_or_given(written: Any, types: tuple[type, ...]) -> None:
    assert validate(Conditions, written) == types


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            "ConnectionEror",
            "'ConnectionEror' is neither a builtin exception nor a kind of failure; did you mean 'ConnectionError'",
        ),
        ("json.JSONDecodeErorr?", "did you mean 'JSONDecodeError'"),
        ("len", "not an exception class"),
        (int, "<class 'int'> is not an exception class"),
        (OSError(), "is not an exception class"),
        (3, "3 is not an exception class"),
        ("", "name of an exception is empty"),
        ("?", "name of an exception is empty"),
        (KeyboardInterrupt, "KeyboardInterrupt is never retried"),
        ("SystemExit", "SystemExit is never retried"),
        (["asyncio.CancelledError"], "CancelledError is never retried"),
        ("no_such_package.SomeError", "No module named 'no_such_package'"),
        ("transiant", "did you mean 'transient'"),
        ("control", "'control' is not a failure"),
        ({"a": OSError}, "not an exception class"),
    ],
)
def test_an_invalid_exception_is_rejected_with_the_nearest_name(wrong: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        validate(Conditions, wrong)


def test_functions_are_named_or_given() -> None:
    assert validate(Function, named.is_none) is named.is_none
    assert validate(Function, "policies.named:is_none") is named.is_none
    for wrong, told in (
        (3, "3 is not callable"),
        ("policies.named:NOT_CALLABLE", "not callable"),
        ("nope", "is not a builtin"),
    ):
        with pytest.raises(ValueError, match=told):
            validate(Function, wrong)


def test_statuses_are_numbers_and_classes() -> None:
    assert validate(StatusCodes, [429, "503", "5xx", "5XX", 429]) == (429, 503, "5xx")
    assert validate(StatusCodes, 429) == (429,)
    for wrong in (99, 600, "6xx", "0xx", "x", True, None, -1, 4.5, "", [[429]]):
        with pytest.raises(ValueError, match="is not an HTTP status"):
            validate(StatusCodes, wrong)


def test_unset_is_one_object_however_it_is_copied() -> None:
    import copy
    import pickle

    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert copy.copy(UNSET) is UNSET
    assert copy.deepcopy([UNSET])[0] is UNSET
    assert repr(UNSET) == "UNSET"
