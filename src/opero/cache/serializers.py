"""Serializers of cache entries: JSON, pickle, and signed pickle."""

from __future__ import annotations

import hmac
import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

from opero.cache.entry import Entry
from opero.errors import describe
from opero.runtime import pickling

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Codec", "SerializationError", "UnreadableError"]

# Format, serializer, is_error, refresh_at, expires, usable. Then follow the number of tokens, the tokens of the tags,
# the value, and the signature, if any.
HEADER = struct.Struct(">3s1sBddd")
MAGIC = b"op1"
TOKEN = 8
SIGNATURE = 32
LETTERS = {"json": b"j", "pickle": b"p", "signed_pickle": b"s"}


class SerializationError(Exception):
    """A serializer cannot write a value so that it reads back the same."""


class UnreadableError(Exception):
    """Stored bytes are not an entry, or were written by a serializer that must not be read."""


class Codec:
    """Converts entries to bytes and back.

    Args:
        serializer: the serializer to write with: "json", "pickle" or "signed_pickle".
        secret: the key that signs pickles; None for no signed pickles.
        reads: the names of the serializers whose bytes may be read.
    """

    def __init__(self, serializer: str, secret: bytes | None, reads: Collection[str]) -> None:
        self.serializer = serializer
        self.secret = secret
        self.reads = frozenset(LETTERS[each] for each in reads)

    def encode(self, key: str, entry: Entry, tokens: tuple[bytes, ...] = ()) -> bytes:
        """Return an entry as bytes.

        Args:
            key: the entry's key in the store, which a signature includes.
            entry: the entry.
            tokens: the tokens of its tags.

        Raises:
            SerializationError: the serializer cannot write the value; the message says why.
        """
        value = self._dumped(entry)
        times = entry.refresh_at, entry.expires, entry.usable
        head = HEADER.pack(MAGIC, LETTERS[self.serializer], entry.is_error, *times)
        data = b"".join((head, bytes((len(tokens),)), *tokens, value))
        return data + self._signature(key, data) if self.serializer == "signed_pickle" else data

    def decode(self, key: str, data: Any) -> tuple[Entry, tuple[bytes, ...]]:
        """Return the entry in some bytes, and the tokens of its tags.

        Raises:
            UnreadableError: the bytes are not an entry, or are of a serializer that must not be read.
        """
        if not isinstance(data, bytes) or len(data) <= HEADER.size or not data.startswith(MAGIC):
            raise UnreadableError("it was not written by opero")
        _, letter, is_error, *times = HEADER.unpack_from(data)
        if letter not in self.reads:
            raise UnreadableError(_why_refused(letter))
        if letter == b"s":
            data, signature = data[:-SIGNATURE], data[-SIGNATURE:]
            if not hmac.compare_digest(signature, self._signature(key, data)):
                raise UnreadableError("invalid signature: it was written with another secret, or tampered with")
        start = HEADER.size + 1
        end = start + data[HEADER.size] * TOKEN
        tokens = tuple(data[at : at + TOKEN] for at in range(start, end, TOKEN))
        try:
            value = json.loads(data[end:]) if letter == b"j" else pickle.loads(data[end:])
        except Exception as error:
            raise UnreadableError(describe(error)) from error
        return Entry(value, *times, is_error=bool(is_error)), tokens

    def _dumped(self, entry: Entry) -> bytes:
        try:
            if self.serializer == "json":
                if entry.is_error:
                    raise SerializationError("JSON cannot represent exceptions; use serializer 'signed_pickle'")
                _check_json(entry.value, "the result")
                return json.dumps(entry.value, ensure_ascii=False).encode()
            written = pickling.dumps(entry.value)
            if entry.is_error:  # many exceptions can be pickled but not unpickled
                pickle.loads(written)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(describe(error)) from error
        return written

    def _signature(self, key: str, data: bytes) -> bytes:
        # It includes the key, so that an entry cannot be moved to another key.
        assert self.secret is not None
        return hmac.digest(self.secret, b"%d:%s" % (len(key.encode()), key.encode()) + data, "sha256")


def _why_refused(letter: bytes) -> str:
    if letter == LETTERS["signed_pickle"]:
        return "it is a signed pickle, and no secret is set to verify it"
    if letter == LETTERS["pickle"]:
        return "it is an unsigned pickle, which could run arbitrary code; sign pickles, or set allow_unsigned_pickle"
    return "unknown format"


def _check_json(value: Any, where: str) -> None:
    """Check that a value reads back from JSON with the same types at every level."""
    kind = type(value)
    if value is None or kind in (bool, int, str, float):
        return
    if kind is list:
        for index, each in enumerate(value):
            _check_json(each, f"{where}[{index}]")
    elif kind is dict:
        for name, each in value.items():
            if type(name) is not str:
                raise SerializationError(
                    f"JSON would convert the key {name!r} in {where} to text; use another serializer"
                )
            _check_json(each, f"{where}[{name!r}]")
    else:
        raise SerializationError(f"JSON cannot represent {where} of type {kind.__name__}; use another serializer")
