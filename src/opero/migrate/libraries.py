"""The libraries whose decorators are replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opero.migrate.backoff import of_backoff
from opero.migrate.stamina import of_stamina
from opero.migrate.tenacity import of_tenacity

if TYPE_CHECKING:
    import libcst as cst

    from opero.migrate.reading import Reader, Translation

TRANSLATORS: dict[str, dict[str, Callable[[Reader, cst.BaseExpression, bool], Translation]]] = {
    "tenacity": {"retry": of_tenacity},
    "stamina": {"retry": of_stamina},
    "backoff": {"on_exception": of_backoff, "on_predicate": of_backoff},
}
"""Library → name of a decorator → what translates it."""
OTHERS = {
    "tenacity": ("Retrying", "AsyncRetrying", "TornadoRetrying"),
    "stamina": (
        "retry_context",
        "RetryingCaller",
        "AsyncRetryingCaller",
        "BoundRetryingCaller",
        "BoundAsyncRetryingCaller",
    ),
    "backoff": (),
}
"""Library → what retries, but decorates nothing."""
