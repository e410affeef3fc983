"""The alerts of a configuration, which run while its registry is the default one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.alerts.manager import AlertManager
    from opero.policies.alert import Alert


class ConfiguredAlerts:
    """Runs the alerts of a registry, and replaces them when its configuration changes.

    Attributes:
        manager: what runs them; None if there are none, or the registry is not the default one.
    """

    def __init__(self) -> None:
        self.manager: AlertManager | None = None
        self._is_wanted = False
        self._lock = RenewedLock()

    def start(self, alerts: Mapping[str, Alert]) -> None:
        """Run the alerts, from now on those of each new configuration."""
        self._is_wanted = True
        self.replace(alerts)

    def replace(self, alerts: Mapping[str, Alert]) -> None:
        """Run the alerts of a new configuration, if any are to be run."""
        with self._lock:
            if not self._is_wanted or not (alerts or self.manager):
                return
            from opero.alerts.manager import AlertManager

            if not alerts and self.manager is not None:
                self.manager.stop()
                self.manager = None
            elif self.manager is None:
                self.manager = AlertManager(alerts).start()
            else:
                self.manager.replace(alerts)

    def stop(self) -> None:
        """Run none any more."""
        self._is_wanted = False
        with self._lock:
            if self.manager is not None:
                self.manager.stop()
                self.manager = None
