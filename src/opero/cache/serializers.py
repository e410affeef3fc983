"""How stores write what they hold: as JSON, as a pickle, or as a signed pickle."""

from __future__ import annotations

import hmac
import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

from opero.cache.entry import Entry
from opero.runtime import pickling as pickles

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CannotHoldError", "Codec", "UnreadableError"]

# Format, key of the serializer, is_error, refresh_at, expires, usable; then a token for each tag; then the value.
HEADER = struct.Struct(">3s1sBddd")
MAGIC = b"op1"
TOKEN = 8
SIGNATURE = 32
LETTERS = {"json": b"j", "pickle": b"p", "signed_pickle": b"s"}


class CannotHoldError(Exception):
    """A serializer cannot write a value so that it reads back the same."""


class UnreadableError(Exception):
    """Bytes that this codec did not write, or must not read."""


class Codec:
    """Writes entries as bytes, and reads them.

    Args:
        serializer: "json", "pickle" or "signed_pickle".
        secret: the key that signs pickles.
        reads: the serializers whose bytes it reads.
    """

    def __init__(self, serializer: str, secret: bytes | None, reads: Collection[str]) -> None:
        self.serializer = serializer
        self.secret = secret
        self.reads = frozenset(LETTERS[each] for each in reads)

    def encode(self, key: str, entry: Entry, tokens: tuple[bytes, ...] = ()) -> bytes:
        """The entry as bytes.

        Raises:
            CannotHoldError: the serializer cannot hold the value; it says why.
        """
        value = self._dumped(entry)
        times = entry.refresh_at, entry.expires, entry.usable
        head = HEADER.pack(MAGIC, LETTERS[self.serializer], entry.is_error, *times)
        data = b"".join((head, bytes((len(tokens),)), *tokens, value))
        return data + self._signature(key, data) if self.serializer == "signed_pickle" else data

    def decode(self, key: str, data: Any) -> tuple[Entry, tuple[bytes, ...]]:
        """The entry, and the tokens of its tags.

        Raises:
            UnreadableError: these bytes are none of a codec's, or of a serializer that this one must not read.
        """
        if not isinstance(data, bytes) or len(data) <= HEADER.size or not data.startswith(MAGIC):
            raise UnreadableError("it is no entry of opero's")
        _, letter, is_error, *times = HEADER.unpack_from(data)
        if letter not in self.reads:
            raise UnreadableError(self._refusal(letter))
        if letter == b"s":
            data, signature = data[:-SIGNATURE], data[-SIGNATURE:]
            if not hmac.compare_digest(signature, self._signature(key, data)):
                raise UnreadableError("its signature is wrong: it was written with another secret, or tampered with")
        start = HEADER.size + 1
        end = start + data[HEADER.size] * TOKEN
        tokens = tuple(data[at : at + TOKEN] for at in range(start, end, TOKEN))
        try:
            value = json.loads(data[end:]) if letter == b"j" else pickle.loads(data[end:])
        except Exception as error:
            raise UnreadableError(f"it cannot be read: {type(error).__name__}: {error}") from error
        return Entry(value, *times, is_error=bool(is_error)), tokens

    def _dumped(self, entry: Entry) -> bytes:
        try:
            if self.serializer == "json":
                if entry.is_error:
                    raise CannotHoldError("JSON holds no exceptions; use serializer 'signed_pickle'")
                _check_json(entry.value, "the result")
                return json.dumps(entry.value, ensure_ascii=False).encode()
            written = pickles.dumps(entry.value)
            if entry.is_error:  # many pickle well and cannot be read back
                pickle.loads(written)
        except CannotHoldError:
            raise
        except Exception as error:
            raise CannotHoldError(f"{type(error).__name__}: {error}") from error
        return written

    def _signature(self, key: str, data: bytes) -> bytes:
        # The key is signed, too: else an entry could be served for another one.
        assert self.secret is not None
        return hmac.digest(self.secret, b"%d:%s" % (len(key.encode()), key.encode()) + data, "sha256")

    def _refusal(self, letter: bytes) -> str:
        name = {letter: name for name, letter in LETTERS.items()}.get(letter)
        if name == "signed_pickle":
            return "it is a signed pickle, and there is no secret to check it with"
        if name == "pickle":
            return (
                "it is an unsigned pickle, which could run anybody's code; sign pickles, or set allow_unsigned_pickle"
            )
        return "it was written in an unknown format"


def _check_json(value: Any, where: str) -> None:
    """Make sure that a value comes back from JSON as it was: the same types all through."""
    kind = type(value)
    if value is None or kind in (bool, int, str, float):
        return
    if kind is list:
        for index, each in enumerate(value):
            _check_json(each, f"{where}[{index}]")
    elif kind is dict:
        for name, each in value.items():
            if type(name) is not str:
                raise CannotHoldError(f"JSON would make text of the key {name!r} in {where}; use another serializer")
            _check_json(each, f"{where}[{name!r}]")
    else:
        raise CannotHoldError(f"JSON cannot hold the {kind.__name__} that {where} is; use another serializer")
