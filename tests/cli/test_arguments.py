"""`opero call`, `map` and `tune` obey the annotations of functions."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.cli.arguments import EMPTY, Fit

if TYPE_CHECKING:
    from cli.conftest import Command


class Colour(Enum):
    RED = "red"
    ONE = 1


MEANT: list[tuple[Any, str, Any]] = [
    (str, "123", "123"),
    (str, "null", "null"),
    (str, '"quoted"', '"quoted"'),
    (Optional[str], "123", "123"),
    (str | None, "null", None),
    (Annotated[str, "doc"], "1e5", "1e5"),
    (int, "123", 123),
    (int | None, "null", None),
    (int | str, "123", 123),
    (int | str, "abc", "abc"),
    (float, "5", 5.0),
    (bool, "true", True),
    (bool, "no", False),
    (bytes, "123", b"123"),
    (Decimal, "1.10", Decimal("1.10")),
    (date, "2026-01-02", date(2026, 1, 2)),
    (datetime, "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),  # noqa: UP017
    (timedelta, "PT10S", timedelta(seconds=10)),
    (UUID, "00000000-0000-0000-0000-00000000000a", UUID(int=10)),
    (Path, "123", Path("123")),
    (Colour, "red", Colour.RED),
    (Colour, "1", Colour.ONE),
    (Literal["1"], "1", "1"),
    (Literal[1, 2], "1", 1),
    (list[int], "[1, 2]", [1, 2]),
    (tuple[int, ...], "[1, 2]", (1, 2)),
    (dict[str, int], '{"a": 1}', {"a": 1}),
    (EMPTY, "123", 123),
    (EMPTY, "abc", "abc"),
    (Any, "123", 123),
    ("a name that cannot be resolved", "123", 123),
    (type("Anything", (), {}), "123", 123),
]


@pytest.mark.parametrize(("annotation", "text", "value"), MEANT, ids=lambda each: str(each)[:40])
def test_text_is_what_the_annotation_says(annotation: Any, text: str, value: Any) -> None:
    found = Fit(annotation).of_text(text)
    assert (type(found), found) == (type(value), value)


@given(st.text())
def test_any_text_reaches_a_str_as_it_is(text: str) -> None:
    assert Fit(str).of_text(text) == text


@given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_reach_their_types_from_text_and_from_json(value: Any) -> None:
    assert Fit(type(value)).of_text(json.dumps(value)) == value
    assert Fit(type(value)).of_value(value) == value
    assert Fit(str).of_value(value) == json.dumps(value)


@pytest.mark.parametrize(
    ("annotation", "text"), [(int, "abc"), (int, "1.5"), (list[int], "5"), (date, "soon"), (Literal["a"], "b")]
)
def test_what_the_annotation_does_not_allow_is_refused(annotation: Any, text: str) -> None:
    with pytest.raises(ValueError, match=" is not "):
        Fit(annotation).of_text(text)


MODULE = """
    from __future__ import annotations
    import datetime
    from dataclasses import dataclass
    from typing import TYPE_CHECKING
    from opero import opero, opmap

    if TYPE_CHECKING:
        from nowhere import Unknown

    @dataclass
    class Order:
        number: str
        amount: float

    def get(user_id: str, limit: int = 0, *rest: str, day: datetime.date | None = None, **more: float) -> object:
        return [repr(each) for each in (user_id, limit, *rest, day, *more.values())]

    def partly(user_id: str, other: Unknown):
        return [repr(user_id), repr(other)]

    def order(order: Order):
        return repr(order)

    @opero(retries=1)
    async def decorated(user_id: str):
        return repr(user_id)

    def batch(user_ids: list[str]):
        return [repr(each) for each in user_ids]

    class Client:
        @opero
        def get(self, user_id: str):
            return repr(user_id)

    client = Client()
"""


@pytest.fixture(autouse=True)
def _module(command: Command) -> None:
    command.write("obeying.py", MODULE)


def test_call_obeys_annotations_of_positional_and_keyword_arguments(command: Command) -> None:
    ran = command("call", "obeying:get", "123", "7", "8", "--kw", "day=2026-01-02", "--kw", "extra=5")
    assert ran.json == ["'123'", "7", "'8'", "datetime.date(2026, 1, 2)", "5.0"]


@pytest.mark.parametrize("target", ["obeying:decorated", "obeying:client.get"])
def test_so_does_a_call_of_a_bound_function(command: Command, target: str) -> None:
    assert command("call", target, "123").json == "'123'"


def test_an_annotation_that_cannot_be_resolved_does_not_matter(command: Command) -> None:
    assert command("call", "obeying:partly", "123", "123").json == ["'123'", "123"]


def test_a_wrong_argument_is_named(command: Command) -> None:
    ran = command("call", "obeying:get", "a", "many")
    assert ran.code == 2
    assert "argument 'limit': 'many' is not int: " in ran.err


def results(out: str) -> list[Any]:
    return [each["result"] for each in map(json.loads, out.splitlines())]


@pytest.mark.parametrize("target", ["obeying:decorated", "obeying:client.get", "obeying:batch"])
@pytest.mark.parametrize("name", ["ids.txt", "ids.jsonl"])
def test_map_obeys_the_annotation_of_its_items(command: Command, target: str, name: str) -> None:
    command.write(name, "123\n007\n" if name == "ids.txt" else "123\n7\n")
    found = results(command("map", target, name, "--ordered", "--mode", "auto").out)
    assert found == (["'123'", "'007'"] if name == "ids.txt" else ["'123'", "'7'"])


def test_map_makes_items_of_rows(command: Command) -> None:
    command.write("orders.csv", "number,amount\n7,1.5\n")
    assert results(command("map", "obeying:order", "orders.csv").out) == ["Order(number='7', amount=1.5)"]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_unpacked_fields_obey_annotations(command: Command, mode: str) -> None:
    command.write("users.csv", "user_id,limit,day\n123,5,2026-01-02\n")
    (found,) = results(command("map", "obeying:get", "users.csv", "--unpack", "--mode", mode).out)
    assert found == ["'123'", "5", "datetime.date(2026, 1, 2)"]


def test_an_unpacked_field_that_is_no_such_value_fails_its_item(command: Command) -> None:
    command.write("users.csv", "user_id,limit\n123,many\n124,5\n")
    ran = command("map", "obeying:get", "users.csv", "--unpack", "--ordered")
    assert ran.code == 1
    failed, fine = map(json.loads, ran.out.splitlines())
    assert failed["error"]["message"].startswith("users.csv:2: field 'limit': 'many' is not int")
    assert fine["result"][:2] == ["'124'", "5"]
