"""What an operator changes for a while: overrides of a registry that end by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opero.config.sources import Source
from opero.runtime.forking import renew_in_child
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.registry.registry import Registry


class Hold:
    """One change of a profile, which ends by itself.

    Args:
        owner: what it is listed in.
        profile: the name of the profile.
        what: what it changes: "pause" or "limit".
        text: what it changes, for people.
        seconds: when it ends.
        by: who made it.
    """

    def __init__(self, owner: Holds, profile: str, what: str, text: str, seconds: float, by: str) -> None:
        self.key = profile, what
        self.text = text
        self.by = by
        self.until = time.time() + seconds
        self._owner = owner
        self._ends = time.monotonic() + seconds
        self._undo: Callable[[], object] | None = None
        renew_in_child(self)

    def begin(self, registry: Registry, profiles: Mapping[str, Any]) -> None:
        """Put it in force.

        Raises:
            ConfigError: the values are invalid; nothing has changed.
        """
        self._undo = registry._override(profiles, {}, Source("action", by=self.by))
        self._start_timer()

    def _start_timer(self) -> None:
        self._timer = threading.Timer(max(0.0, self._ends - time.monotonic()), self._owner.end, [self])
        self._timer.name = "opero-hold"
        self._timer.daemon = True
        self._timer.start()

    def after_fork(self) -> None:
        """The timer is a thread of the parent."""
        if self._undo is not None:
            self._start_timer()

    def end(self) -> None:
        """Undo it. Ending it again does nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            self._timer.cancel()
            undo()


class Holds:
    """The changes that last for a while: of each kind one for each profile. Thread-safe."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Hold] = {}
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def hold(
        self, registry: Registry, profile: str, what: str, change: Any, text: str, seconds: float, by: str
    ) -> None:
        """Change a profile for some seconds, in place of an earlier change of that kind.

        Raises:
            ConfigError: the values are invalid; nothing has changed.
        """
        hold = Hold(self, profile, what, text, seconds, by)
        with self._lock:
            before = self._held.get(hold.key)
            hold.begin(registry, {profile: change})
            self._held[hold.key] = hold
        if before is not None:
            before.end()

    def end(self, hold: Hold) -> None:
        """End one whose time is over."""
        with self._lock:
            if self._held.get(hold.key) is hold:
                del self._held[hold.key]
        hold.end()
        text = "%s: no longer in force, as its time is over: %s (by %s)"
        log("action_ended", text, hold.key[0], hold.text, hold.by, target=hold.key[0], by=hold.by)

    def release(self, profile: str) -> list[str]:
        """End all of a profile; return what they changed."""
        with self._lock:
            ended = [self._held.pop(key) for key in list(self._held) if key[0] == profile]
        for each in ended:
            each.end()
        return [each.text for each in ended]

    def listed(self) -> list[dict[str, Any]]:
        """Return what is in force."""
        with self._lock:
            return [
                {"profile": each.key[0], "what": each.key[1], "text": each.text, "until": each.until, "by": each.by}
                for each in self._held.values()
            ]
