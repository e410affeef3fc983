"""Who an alert notifies: the log, functions, webhooks. A failure here is logged and affects no call."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from opero.errors import describe
from opero.events import AlertFired, AlertResolved
from opero.observe.subscriptions import Subscription, deliver
from opero.policies.alert import Webhook
from opero.policies.policy import Policy
from opero.runtime.log import is_heard, log

if TYPE_CHECKING:
    from opero.policies.alert import Action

LARGEST_ANSWER = 1 << 16


def notify(event: AlertFired, actions: tuple[Action, ...], *, patient: bool = True) -> None:
    """Deliver a notification to handlers of events, and to all that an alert names.

    Args:
        event: the notification.
        actions: who is notified.
        patient: whether a webhook that fails is called again.
    """
    deliver(event)
    for action in actions:
        if isinstance(action, Webhook):
            _send(action if patient else action.model_copy(update={"retries": 0}), event)
        elif action == "log":
            _log(event)
        else:
            Subscription(action, most_seconds=float("inf")).deliver(event)


def _log(event: AlertFired) -> None:
    fields: dict[str, Any] = {"function": event.function, "policy": event.policy, "alert": event.alert}
    fields |= {"functions": event.functions, "policies": event.policies, "seconds": event.seconds, "text": event.text}
    if isinstance(event, AlertResolved):
        log("alert_resolved", "alert %s is resolved: %s", event.alert, event.message, **fields)
    else:
        log("alert_fired", "alert %s: %s", event.alert, event.message, **fields)
        if not is_heard() and sys.stderr is not None:  # an alert has to be seen somewhere
            print(f"opero: alert {event.alert}: {event.message}", file=sys.stderr)


def _send(webhook: Webhook, event: AlertFired) -> None:
    title = f"{'Resolved' if isinstance(event, AlertResolved) else 'Alert'}: {event.alert}: {event.message}"
    data = {
        **event.as_dict(),
        "description": event.text,
        "text": title,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    try:
        _posting(webhook)(json.dumps(data).encode(), webhook)
    except Exception as error:  # noqa: BLE001  # whatever the network does
        text = "alert %s: its webhook could not be called: %s"
        log("alert_not_sent", text, event.alert, _reason(error), alert=event.alert, error=error, hides=True)


def _reason(error: Exception) -> str:
    """Return why a webhook failed, without its URL, which is secret."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    return describe(error.reason) if isinstance(error, OSError) and hasattr(error, "reason") else type(error).__name__


def _posting(webhook: Webhook) -> Any:
    """Return what posts to a webhook, under a policy of its own."""
    policy = Policy(
        retry={"retries": webhook.retries, "min_delay": 0.5, "max_delay": 30.0, "reraise": True},
        timeout={"attempt": webhook.timeout},
    )
    return policy.apply(_post)


def _post(body: bytes, webhook: Webhook) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "opero"}
    request = urllib.request.Request(webhook.url.get_secret_value(), body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=webhook.timeout) as response:
        response.read(LARGEST_ANSWER)
