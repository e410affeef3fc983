"""The routes: health, metrics, the live page and what it asks for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, MissingExtraError, nearest
from opero.health.monitor import HealthMonitor
from opero.integrations.web.actions import act
from opero.integrations.web.feed import Feed
from opero.integrations.web.holds import Holds
from opero.integrations.web.messages import HealthAsked, Request, Response, Updates, as_json, refused
from opero.integrations.web.page import page
from opero.integrations.web.recent import RecentEvents
from opero.integrations.web.security import Gate
from opero.registry.default import get_default_registry
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.health.status import HealthStatus
    from opero.registry.registry import Registry

MOST_STREAMS = 8
"""Pages that are sent messages at once, where each takes a thread; others ask for each message."""
STREAM_LASTS = 15
"""Messages after which a stream ends and the page opens another, so that a server that shuts down need not wait."""


class Site:
    """What is served, for any kind of server.

    Args:
        registry: the registry to show. Default: the default registry, at the time of each request.
        monitor: the health monitor. Default: one of the registry, without checks and without critical profiles.
        bound: as for `Gate`.
        keeps_events: whether events are kept as long as it is served, not only while a page is open.
    """

    def __init__(
        self,
        registry: Registry | None = None,
        monitor: HealthMonitor | None = None,
        *,
        bound: str | None = None,
        keeps_events: bool = False,
    ) -> None:
        self._registry = registry
        self._monitor = monitor
        self._gate = Gate(bound)
        self.events = RecentEvents(for_good=keeps_events)
        self._holds = Holds()
        self._feed_in_use: Feed | None = None
        self._streams = 0
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def after_fork(self) -> None:
        """The streams are those of the parent."""
        self._streams = 0

    @property
    def registry(self) -> Registry:
        """The registry that is shown."""
        return get_default_registry() if self._registry is None else self._registry

    @property
    def monitor(self) -> HealthMonitor:
        """The health monitor."""
        return self._monitor or self._own_monitor

    @cached_property
    def _own_monitor(self) -> HealthMonitor:
        return HealthMonitor(self.registry)

    @property
    def feed(self) -> Feed:
        """The changes of the registry."""
        registry = self.registry
        with self._lock:
            if self._feed_in_use is None or self._feed_in_use.registry is not registry:
                self._feed_in_use = Feed(registry, self.events, self._holds)
            return self._feed_in_use

    def answer(self, request: Request, *, may_stream: bool = True) -> Response | Updates | HealthAsked:
        """Return what a request is answered with. It may block for some milliseconds.

        Args:
            request: the request.
            may_stream: whether the server can send a response bit by bit without delaying other requests.
        """
        refusal = self._gate.refusal(request)
        if refusal is not None:
            return refusal
        path = request.path
        if path in ("", "/") and not request.prefix.startswith("//"):
            return Response(307, b"", "text/plain", [("Location", f"{request.prefix}/opero")])
        if path not in ROUTES:
            return refused(404, f"there is no page {path[:100]!r}{nearest(path, ROUTES)}")
        allowed = ("POST",) if path == "/opero/actions" else ("GET", "HEAD")
        if request.method not in allowed:
            return refused(405, f"use {allowed[0]}", [("Allow", ", ".join(allowed))])
        if path == "/health/live":
            return as_json({"status": "alive"})
        if path in ("/health", "/health/ready"):
            return HealthAsked(path == "/health/ready")
        if path == "/metrics":
            return _metrics()
        if path == "/opero":
            return page()
        if path == "/opero/state.json":
            return as_json(self.feed.whole())
        if path == "/opero/explain.json":
            return self._explain(request.argument("target") or "")
        if path == "/opero/actions":
            return act(request, self.registry, self._holds)
        return self._updates(request, may_stream)

    def health(self, asked: HealthAsked, results: Mapping[str, HealthStatus]) -> Response:
        """Return the response to a request for the health, after the checks have been run."""
        overall = self.monitor.get_overall_health()
        is_ready = self.monitor.is_ready()
        checks = {name: asdict(each) for name, each in results.items()}
        if asked.is_probe:
            wrong = {name: each["last_error"] for name, each in checks.items() if each["status"] != "healthy"}
            return as_json({"ready": is_ready, "not_healthy": wrong}, 200 if is_ready else 503)
        return as_json({"status": overall, "ready": is_ready, "checks": checks}, 503 if overall == "unhealthy" else 200)

    def _explain(self, target: str) -> Response:
        from opero.config.plain_values import leaf_text
        from opero.config.sources import DEFAULT

        try:
            leaves = self.registry.explain(target)
        except ConfigError as error:
            return refused(404, str(error))

        def told(path: str, leaf: Any) -> dict[str, Any]:
            return {"value": leaf_text(path, leaf), "source": str(leaf.source), "section": leaf.section}

        options = [
            {"option": path, **told(path, leaf), "over": [told(path, each) for each in list(leaf.chain())[1:]]}
            for path, leaf in leaves.items()
            if any(each.source != DEFAULT for each in leaf.chain())
        ]
        return as_json({"target": target, "options": options})

    def _updates(self, request: Request, may_stream: bool) -> Updates:
        feed, since = self.feed, request.headers.get("last-event-id", "")
        with self._lock:
            goes_on = may_stream and self._streams < MOST_STREAMS
            self._streams += goes_on
        is_open = [goes_on]

        def following() -> bytes:
            nonlocal since
            since, message = feed.message(since)
            return message

        def end() -> None:
            with self._lock:
                if is_open[0] and self._streams:
                    self._streams -= 1
                is_open[0] = False

        return Updates(following, end, goes_on)


def _metrics() -> Response:
    try:
        from opero.integrations.prometheus import exposition

        body, content_type = exposition()
    except MissingExtraError as error:
        return refused(501, str(error))
    return Response(200, body, content_type)


ROUTES = (
    *("/health", "/health/live", "/health/ready", "/metrics"),
    *("/opero", "/opero/state.json", "/opero/events", "/opero/explain.json", "/opero/actions"),
)
