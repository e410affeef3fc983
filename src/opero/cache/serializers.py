"""Serializers of cache entries: JSON, JSON by the return annotation, pickle, and signed pickle."""

from __future__ import annotations

import hmac
import json
import pickle
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from opero.cache.entry import FOREVER, Entry, SerializationError
from opero.errors import describe
from opero.policies.types import approximate_duration
from opero.runtime import pickling

if TYPE_CHECKING:
    from opero.cache.typed import TypedValues

# Format, serializer, is_error, written, refresh_at, expires, usable. Then follow the number of tokens, the tokens of
# the tags, the value, and the signature, or a checksum where entries are not signed. Both include the key, so that no
# entry is taken for another's.
HEADER = struct.Struct(">3s1sBdddd")
MAGIC = b"op2"
TOKEN = 8
SIGNATURE, CHECKSUM = 32, 8
MOST_SKEW = 60.0
"""Seconds by which the clocks of two machines may differ. What was written later than that from now shows that a clock
has been set back, after which an entry may seem not to have expired yet."""
LETTERS = {"typed": b"t", "json": b"j", "pickle": b"p", "signed_pickle": b"s"}


class UnreadableError(Exception):
    """Stored bytes are not an entry for this key, or not one that this serializer has written."""


class Codec:
    """Converts entries to bytes and back. It reads what its serializer writes and nothing else.

    Args:
        serializer: the serializer: "typed", "json", "pickle" or "signed_pickle".
        secret: the key that signs pickles; None if the serializer signs nothing.
        values: what "typed" writes and reads results by.
    """

    def __init__(self, serializer: str, secret: bytes | None = None, values: TypedValues | None = None) -> None:
        self.values = values
        self.serializer = serializer
        self.secret = secret
        self._letter = LETTERS[serializer]

    def encode(self, key: str, entry: Entry, tokens: tuple[bytes, ...] = (), written: float = 0.0) -> bytes:
        """Return an entry as bytes.

        Args:
            key: the entry's key in the store, which signature and checksum include.
            entry: the entry.
            tokens: the tokens of its tags.
            written: the time now, by the clock of the entry's times.

        Raises:
            SerializationError: the serializer cannot write the value; the message says why.
        """
        value = self._dumped(entry)
        times = written, entry.refresh_at, entry.expires, entry.usable
        head = HEADER.pack(MAGIC, self._letter, entry.is_error, *times)
        data = b"".join((head, bytes((len(tokens),)), *tokens, value))
        return data + self._seal(key, data)

    def decode(self, key: str, data: Any, now: float = FOREVER) -> tuple[Entry, tuple[bytes, ...]]:
        """Return the entry in some bytes, and the tokens of its tags.

        Args:
            key: the entry's key in the store.
            data: the bytes.
            now: the time now, by the clock of the entry's times.

        Raises:
            UnreadableError: the bytes are not an entry for this key, are not whole, were written by another serializer,
                or in the future.
        """
        if not isinstance(data, bytes) or len(data) <= HEADER.size or not data.startswith(MAGIC):
            raise UnreadableError("it was not written by this version of opero")
        _, letter, is_error, written, *times = HEADER.unpack_from(data)
        if letter != self._letter:
            raise UnreadableError(self._why_refused(letter))
        size = CHECKSUM if self.secret is None else SIGNATURE
        data, seal = data[:-size], data[-size:]
        if len(data) <= HEADER.size or not hmac.compare_digest(seal, self._seal(key, data)):
            raise UnreadableError(
                "invalid checksum: it is damaged, or another key's"
                if self.secret is None
                else "invalid signature: it was written with another secret, or tampered with"
            )
        if written > now + MOST_SKEW:
            raise UnreadableError(
                f"it was written {approximate_duration(written - now)} in the future, by this machine's clock; it may "
                "have expired since"
            )
        start = HEADER.size + 1
        end = start + data[HEADER.size] * TOKEN
        tokens = tuple([data[at : at + TOKEN] for at in range(start, end, TOKEN)])
        try:
            if self.values is not None:
                value = self.values.loads(data[end:])
            else:
                value = json.loads(data[end:]) if letter == LETTERS["json"] else pickle.loads(data[end:])
        except Exception as error:
            raise UnreadableError(describe(error)) from error
        return Entry(value, *times, is_error=bool(is_error), written=written), tokens

    def _dumped(self, entry: Entry) -> bytes:
        try:
            if self.serializer in ("typed", "json"):
                if entry.is_error:
                    raise SerializationError("JSON cannot represent exceptions; use serializer 'signed_pickle'")
                if self.values is not None:
                    return self.values.dumps(entry.value)
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

    def _seal(self, key: str, data: bytes) -> bytes:
        """Return the signature of an entry, or its checksum."""
        name = key.encode("utf-8", "surrogatepass")
        whole = b"%d:%s" % (len(name), name) + data
        if self.secret is None:
            return blake2b(whole, digest_size=CHECKSUM).digest()
        return hmac.digest(self.secret, whole, "sha256")

    def _why_refused(self, letter: bytes) -> str:
        found = {each: name for name, each in LETTERS.items()}.get(letter)
        return "unknown format" if found is None else f"it was written by serializer {found!r}, not {self.serializer!r}"


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
