"""Serializers: values read back unchanged, signatures are verified, and pickles load only if allowed."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.cache.entry import FOREVER, Entry
from opero.cache.serializers import Codec, SerializationError, UnreadableError

JSON = Codec("json")
PICKLE = Codec("pickle")
SIGNED = Codec("signed_pickle", b"key")
CODECS = {"json": JSON, "pickle": PICKLE, "signed": SIGNED, "signed by another": Codec("signed_pickle", b"another")}
TOKENS = (b"12345678", b"abcdefgh")

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=10,
)  # fmt: skip
values = (
    json_values | st.tuples(st.integers(), st.binary()) | st.sets(st.integers()) | st.complex_numbers(allow_nan=False)
)


@given(value=json_values, times=st.lists(st.floats(0, FOREVER), min_size=3, max_size=3))
def test_json_values_read_back_unchanged(value: Any, times: list[float]) -> None:
    entry, tokens = JSON.decode("k", JSON.encode("k", Entry(value, *times), TOKENS))
    assert (entry.value, [entry.refresh_at, entry.expires, entry.usable], tokens) == (value, times, TOKENS)
    assert repr(entry.value) == repr(value)


@given(value=values)
def test_pickled_values_read_back_unchanged_with_and_without_signature(value: Any) -> None:
    for codec in (PICKLE, SIGNED):
        entry, tokens = codec.decode("k", codec.encode("k", Entry(value)))
        assert (entry.value, type(entry.value)) == (value, type(value))
        assert (tokens, entry.usable, entry.is_error) == ((), FOREVER, False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "JSON cannot represent the result of type set"),
        ((1, 2), "the result of type tuple"),
        ({"a": [1, (2,)]}, r"the result\['a'\]\[1\] of type tuple"),
        ({1: 2}, "JSON would convert the key 1 in the result to text"),
        (OrderedDict(a=1), "of type OrderedDict"),
        (b"bytes", "of type bytes"),
        ("\ud800", "UnicodeEncodeError"),
    ],
)
def test_json_refuses_values_that_would_read_back_differently(value: Any, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        JSON.encode("k", Entry(value))


def test_a_value_that_cannot_be_pickled_is_refused_with_the_reason() -> None:
    with pytest.raises(SerializationError, match="pickle"):
        PICKLE.encode("k", Entry(lambda: 1))


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def test_an_exception_is_written_only_if_it_can_be_read_back() -> None:
    entry, _ = SIGNED.decode("k", SIGNED.encode("k", Entry(KeyError("a"), is_error=True)))
    assert (repr(entry.value), entry.is_error) == ("KeyError('a')", True)
    with pytest.raises(SerializationError, match="missing 1 required positional argument"):
        SIGNED.encode("k", Entry(OddError(1, 2), is_error=True))
    with pytest.raises(SerializationError, match="JSON cannot represent exceptions"):
        JSON.encode("k", Entry(KeyError("a"), is_error=True))


class Bomb:
    exploded = 0

    def __reduce__(self) -> Any:
        return Bomb.explode, ()

    @staticmethod
    def explode() -> None:
        Bomb.exploded += 1


@pytest.mark.parametrize("reader", CODECS)
@pytest.mark.parametrize("writer", CODECS)
def test_a_codec_reads_what_it_writes_and_nothing_else(writer: str, reader: str) -> None:
    data = CODECS[writer].encode("k", Entry([1]))
    if writer == reader:
        assert CODECS[reader].decode("k", data)[0].value == [1]
        return
    with pytest.raises(UnreadableError, match="written (by serializer|with another secret)"):
        CODECS[reader].decode("k", data)


@pytest.mark.parametrize("reader", ["json", "signed", "signed by another"])
def test_an_unsigned_pickle_is_loaded_by_no_other_codec_however_it_is_dressed(reader: str) -> None:
    codec, planted = CODECS[reader], PICKLE.encode("k", Entry(Bomb()))
    for letter in (b"p", b"s", b"j", b"?"):
        for tail in (b"", bytes(8), bytes(32), codec._seal("k", planted)):
            with pytest.raises(UnreadableError):
                codec.decode("k", planted.replace(b"op2p", b"op2" + letter) + tail)
    with pytest.raises(UnreadableError):
        codec.decode("k", pickle.dumps(Bomb()))
    assert Bomb.exploded == 0


@given(codec=st.sampled_from(list(CODECS.values())), position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_an_entry_that_was_modified_anywhere_is_not_read(codec: Codec, position: int, flip: int) -> None:
    data = bytearray(codec.encode("k", Entry({"a": 1}, 1.0, 2.0, 3.0), TOKENS, 0.5))
    data[position % len(data)] ^= flip
    with pytest.raises(UnreadableError):
        codec.decode("k", bytes(data))


@given(codec=st.sampled_from(list(CODECS.values())), length=st.integers(0, 200), tail=st.binary(max_size=3))
def test_an_entry_that_was_cut_or_extended_is_not_read(codec: Codec, length: int, tail: bytes) -> None:
    data = codec.encode("k", Entry({"a": 1}), TOKENS)
    if data[:length] + tail != data:
        with pytest.raises(UnreadableError):
            codec.decode("k", data[:length] + tail)


def test_an_entry_is_read_only_for_its_own_key() -> None:
    for codec in CODECS.values():
        with pytest.raises(UnreadableError, match="another key's|tampered with"):
            codec.decode("other", codec.encode("k", Entry(1)))


def test_an_entry_that_was_written_in_the_future_is_not_read() -> None:
    for codec in CODECS.values():
        data = codec.encode("k", Entry(1, 1060.0, 1060.0, 1060.0), written=1000.0)
        assert codec.decode("k", data, 990.0)[0].value == 1  # clocks of machines differ by some seconds
        with pytest.raises(UnreadableError, match=r"it was written .* in the future, by this machine's clock"):
            codec.decode("k", data, 900.0)


@given(data=st.binary(max_size=200))
def test_garbage_is_not_read(data: bytes) -> None:
    for codec in (JSON, PICKLE, SIGNED):
        for given_data in (data, b"op2" + data, b"op2j" + data, b"op2p" + data, b"op1p" + data, None, "text"):
            with pytest.raises(UnreadableError):
                codec.decode("k", given_data)
