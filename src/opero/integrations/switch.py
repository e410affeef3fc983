"""`OPERO_METRICS`: metrics that are switched on without a line of code, when the default registry is first used."""

from __future__ import annotations

from opero.errors import error_at, message_of, nearest
from opero.runtime.named_secrets import find_secret

VARIABLE = "OPERO_METRICS"
KNOWN = ("prometheus", "otel")


def switch_on() -> None:
    """Export the metrics of the default registry that `OPERO_METRICS` names, in the environment or the `.env` file.

    Raises:
        ConfigError: it names something unknown.
        MissingExtraError: a package is missing.
    """
    names = wanted()
    if "prometheus" in names:
        from opero.integrations import prometheus

        prometheus.instrument()
    if "otel" in names:
        from opero.integrations import otel

        otel.instrument()


def wanted() -> list[str]:
    """Return the metrics that the variable names.

    Raises:
        ConfigError: it names something unknown.
    """
    names = [name for each in _named().split(",") if (name := each.strip().lower())]
    for name in names:
        if name not in KNOWN:
            text = f"unknown value {name!r}{nearest(name, KNOWN)}; use prometheus, otel, or prometheus,otel"
            raise error_at(VARIABLE, text)
    return names


def _named() -> str:
    try:
        return find_secret(VARIABLE) or ""
    except ValueError as error:
        raise error_at(VARIABLE, message_of(error)) from None
