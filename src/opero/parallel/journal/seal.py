"""Which records of a journal may be read: signed ones if there is a secret, else pickles only from trusted places."""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Any

from opero.runtime.log import log
from opero.runtime.trusted_paths import distrusted

if TYPE_CHECKING:
    from pathlib import Path

SIGNED = re.compile(rb'(\{.*), "sig": "([0-9a-f]{64})"\}\n', re.DOTALL).fullmatch


class Seal:
    """Signs the records of one function, if there is a secret, and refuses those that others may have written.

    A signature is the last field of its record, `"sig": "…"`. It covers what comes before it and the function's name.

    Args:
        path: of the journal.
        name: the function's name.
        secret: the key of the signatures; None to sign nothing.
    """

    def __init__(self, path: Path, name: str, secret: bytes | None) -> None:
        self.path = path
        self.secret = secret
        self._name = name.encode("utf-8", "surrogatepass") + b"\n"
        self._distrusted = ""

    def look(self) -> None:
        """Find out, once the file is open, whether others can write it, and warn of that."""
        self._distrusted = distrusted(self.path)
        if self._distrusted:
            text = "the journal %s can be changed by others, as %s"
            log("journal_unsafe", text, self.path, self._distrusted, path=self.path)

    def sign(self, line: bytes) -> bytes:
        """A record with its signature; without a secret as it is."""
        return line if self.secret is None else b'%s, "sig": "%s"}\n' % (line[:-2], self._of(line[:-2]))

    def why_refused(self, line: bytes, record: dict[str, Any]) -> str:
        """Why a record is not to be read, as the end of a sentence; "" if it may be."""
        if self.secret is None:
            if "sig" in record:
                return "is signed, and there is no secret to verify it: set OPERO_CACHE_SECRET"
            if self._distrusted and "pickle" in record:
                return (
                    f"is a pickle, which could run the code of others, as {self._distrusted}: move it to a directory "
                    "of your own, or give another path"
                )
            return ""
        signed = SIGNED(line)
        if signed is None:
            return "is not signed, but there is a secret: give another path, or delete that line to compute it again"
        if not hmac.compare_digest(self._of(signed[1]), signed[2]):
            return (
                "has an invalid signature: it was written with another secret, or tampered with; delete that line, and "
                "its item is computed again"
            )
        return ""

    def _of(self, line: bytes) -> bytes:
        assert self.secret is not None
        return hmac.digest(self.secret, self._name + line, "sha256").hex().encode()
