"""Errors of the operating system: by errno, name resolution, and TLS."""

from __future__ import annotations

import errno

from opero.failures.kinds import Failure, Kind, gravest
from opero.failures.reading import read, text, whole, words
from opero.patterns import pattern

Verdict = tuple[Kind, str]


def _numbers(names: str) -> frozenset[int]:
    return frozenset(number for name in names.split() if (number := getattr(errno, name, None)) is not None)


TRANSIENT = _numbers(
    "ECONNRESET ECONNREFUSED ECONNABORTED EPIPE ESHUTDOWN ENOTCONN ETIMEDOUT EHOSTUNREACH EHOSTDOWN ENETUNREACH "
    "ENETDOWN ENETRESET EAGAIN EWOULDBLOCK EINPROGRESS EALREADY EINTR EBUSY ETXTBSY EDEADLK ENOLCK ENOBUFS EADDRINUSE "
    "EADDRNOTAVAIL EMFILE ENFILE ESTALE"
)
PERMANENT = _numbers(
    "ENOENT EACCES EPERM EEXIST ENOTDIR EISDIR EINVAL ENOSPC EDQUOT EROFS ENAMETOOLONG ELOOP EXDEV ENOTEMPTY EFBIG "
    "EBADF ENOTSUP EOPNOTSUPP ENOSYS ENODEV ENXIO ENOTSOCK EAFNOSUPPORT EPROTONOSUPPORT EPROTOTYPE ENOPROTOOPT ENOTBLK "
    "ENOTTY ENOEXEC E2BIG ESRCH ECHILD EMSGSIZE EDESTADDRREQ EISCONN EFAULT ESPIPE EMLINK ENOMEM EDOM"
)
UNRESOLVED_FOR_NOW = frozenset({"EAI_AGAIN", "EAI_MEMORY", "EAI_SYSTEM"})
UNRESOLVABLE = words("EAI_NONAME EAI_NODATA EAI_ADDRFAMILY EAI_FAMILY EAI_SERVICE EAI_SOCKTYPE EAI_BADFLAGS")
TLS_REFUSALS = words(
    "CERTIFICATE_VERIFY_FAILED WRONG_VERSION_NUMBER UNSUPPORTED_PROTOCOL HTTP_REQUEST NO_PROTOCOLS_AVAILABLE "
    "NO_CIPHERS_AVAILABLE NO_SHARED_CIPHER SSLV3_ALERT_HANDSHAKE_FAILURE SSLV3_ALERT_BAD_CERTIFICATE "
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE SSLV3_ALERT_CERTIFICATE_EXPIRED SSLV3_ALERT_CERTIFICATE_REVOKED "
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN TLSV1_ALERT_UNKNOWN_CA TLSV1_ALERT_ACCESS_DENIED TLSV1_ALERT_PROTOCOL_VERSION "
    "TLSV1_UNRECOGNIZED_NAME TLSV13_ALERT_CERTIFICATE_REQUIRED"
)
"""OpenSSL's reasons why another attempt fails in the same way."""

_ERRNO = pattern(r"\[Errno (-?\d+)\]")


def kind_of_errno(number: int) -> Kind:
    if number in TRANSIENT:
        return Kind.TRANSIENT
    return Kind.PERMANENT if number in PERMANENT else Kind.UNKNOWN


def of_system(error: OSError, names: frozenset[str]) -> Verdict | None:
    """Return what the number of an OSError says.

    Args:
        error: the exception.
        names: the names of its class and of the bases of it.
    """
    number = whole(read(error, "errno"))
    if "gaierror" in names:
        return _of_name_resolution(number)
    if "herror" in names:
        return Kind.TRANSIENT if number == 2 else Kind.PERMANENT, "DNS TRY_AGAIN" if number == 2 else "DNS herror"
    if "SSLError" in names and hasattr(error, "reason"):
        reason = text(read(error, "reason"))
        if "CertificateError" in names or "SSLCertVerificationError" in names or reason in TLS_REFUSALS:
            return Kind.PERMANENT, f"TLS {reason or 'certificate'}"
        return Kind.TRANSIENT, f"TLS {reason or type(error).__name__}"
    if number is not None:
        kind = kind_of_errno(number)
        return None if kind is Kind.UNKNOWN else (kind, errno.errorcode.get(number, str(number)))
    # asyncio reports the attempts at several addresses as one text.
    numbers = [int(each) for each in _ERRNO.findall(text(error.args[0]))] if error.args else []
    failures = [Failure(kind_of_errno(each), None, errno.errorcode.get(each, str(each))) for each in numbers[:20]]
    if not failures:
        return None
    found = failures[0]
    for each in failures[1:]:
        found = gravest(found, each)
    return None if found.kind is Kind.UNKNOWN else (found.kind, found.reason)


def _of_name_resolution(number: int | None) -> Verdict:
    import socket  # loaded already, as it raised the error

    name = next(
        (each for each in (*UNRESOLVED_FOR_NOW, *UNRESOLVABLE) if getattr(socket, each, None) == number),
        str(number),
    )
    if name in UNRESOLVED_FOR_NOW:
        return Kind.TRANSIENT, f"DNS {name}"
    return Kind.PERMANENT if name in UNRESOLVABLE else Kind.UNKNOWN, f"DNS {name}"
