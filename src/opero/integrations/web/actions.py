"""Actions on a running program: circuits, statistics, limits, reloads. Each is logged with who asked for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from opero.errors import ConfigError, message_of, nearest, one_line, shortened
from opero.integrations.web.messages import LARGEST_BODY, Request, Response, as_json, refused
from opero.integrations.web.security import token_refusal
from opero.policies.quantities import parse_duration
from opero.policies.types import format_duration
from opero.registry.parts import is_by_key
from opero.registry.statistics import all_of, profile_of
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.integrations.web.holds import Holds
    from opero.registry.registry import Registry

LONGEST_HOLD = 86_400.0
FIELDS = ("action", "target", "for", "by", "rate", "max_concurrent", "key")


def act(request: Request, registry: Registry, holds: Holds) -> Response:
    """Do what a request asks for: a JSON object with `action`, and `target`, the name of a profile or function."""
    refusal = token_refusal(request)
    if refusal is not None:
        return refusal
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return refused(415, "send Content-Type: application/json")
    if len(request.body) > LARGEST_BODY:
        return refused(413, f"the body is longer than {LARGEST_BODY} bytes")
    try:
        order = json.loads(request.body)
    except (ValueError, RecursionError):
        return refused(400, "the body is not JSON")
    if not isinstance(order, dict) or not all(isinstance(order.get(name), str) for name in ("action", "target")):
        return refused(400, 'send an object such as {"action": "force_open", "target": "api"}')
    unknown = [name for name in order if name not in FIELDS]
    if unknown:
        return refused(400, f"unknown field {unknown[0]!r}{nearest(unknown[0], FIELDS)}")
    action = order["action"]
    if action not in ACTIONS:
        return refused(400, f"unknown action {action!r}{nearest(action, ACTIONS)}")
    by = shortened(one_line(str(order.get("by") or "")), 80)
    who = " ".join(each for each in (by, f"from {request.client}" if request.client else "") if each) or "somebody"
    about: dict[str, Any] = {"action": action, "target": order["target"], "by": who}
    try:
        done = ACTIONS[action](registry, holds, order, who)
    except (ConfigError, ValueError) as error:
        text = "action %s on %r by %s: refused: %s"
        log("action_refused", text, action, order["target"], who, error, **about, error=error)
        return refused(422, message_of(error))
    log("action_taken", "action %s on %r by %s: %s", action, order["target"], who, done, **about)
    return as_json({"done": done})


def _bindings(registry: Registry, target: str) -> list[Binding]:
    """Return the bindings of a function by name, or those of the functions of a profile; "*" is all.

    Raises:
        ValueError: there is no such profile or function.
    """
    bindings = all_of(registry)
    if target == "*":
        return bindings
    of_name = [each for each in bindings if each.stats.function == target]
    if of_name:
        return of_name
    if target not in registry:
        names = [*registry, *(each.stats.function for each in bindings)]
        raise ValueError(f"there is no profile and no function {target!r}{nearest(target, names)}")
    return [each for each in bindings if profile_of(registry, each) == target]


def _profile(registry: Registry, target: str) -> str:
    if target not in registry:
        raise ValueError(f"there is no profile {target!r}{nearest(target, list(registry))}")
    return target


def _breakers(registry: Registry, target: str) -> Iterator[CircuitBreakerExecutor]:
    found: dict[int, CircuitBreakerExecutor] = {}
    if target in registry:
        with suppress(ConfigError):  # it has none, or each function has its own
            shared = registry.state(target).circuit_breaker
            found[id(shared)] = shared
    for binding in _bindings(registry, target):
        executor = None if binding.is_late else binding.circuit_breaker
        if executor is not None:
            found[id(executor)] = executor
    if not found:
        raise ValueError(f"{target} has no circuit breaker in use: a function gets its own at its first call")
    yield from found.values()


Do = Callable[["Registry", "Holds", dict[str, Any], str], str]


def _circuit(verb: str, done: str) -> Do:
    def do(registry: Registry, holds: Holds, order: dict[str, Any], who: str) -> str:
        names = []
        key = order.get("key")
        for each in list(_breakers(registry, order["target"])):
            if key is None:
                getattr(each, verb)()
            elif not is_by_key(each):
                raise ValueError(f"{each.name} has one circuit, and none for each key: leave key out")
            else:
                getattr(cast("Any", each).of(key), verb)()
            names.append(each.name if key is None else f"{each.name}[{shortened(one_line(str(key)), 80)}]")
        return f"{done}: {', '.join(names)}"

    return do


def _reset_statistics(registry: Registry, holds: Holds, order: dict[str, Any], who: str) -> str:
    bindings = _bindings(registry, order["target"])
    for each in bindings:
        each.stats.drain()
    return f"the statistics of {len(bindings)} functions begin anew"


def _pause(registry: Registry, holds: Holds, order: dict[str, Any], who: str) -> str:
    seconds = _seconds(order)
    text = f"the policies are off for {format_duration(seconds)}"
    holds.hold(registry, _profile(registry, order["target"]), "pause", {"enabled": False}, text, seconds, who)
    return text


def _limit(registry: Registry, holds: Holds, order: dict[str, Any], who: str) -> str:
    seconds = _seconds(order)
    change: dict[str, Any] = {}
    if order.get("rate") is not None:
        change["rate_limit"] = {"rate": order["rate"], "enabled": True}  # in place of several limits, if it has them
    if order.get("max_concurrent") is not None:
        change["bulkhead"] = {"max_concurrent": order["max_concurrent"], "enabled": True}
    if not change:
        raise ValueError('a limit needs a "rate" such as "5/s", or "max_concurrent"')
    shown = " and ".join(f"{name} {order[name]}" for name in ("rate", "max_concurrent") if order.get(name) is not None)
    text = f"{shown} for {format_duration(seconds)}"
    holds.hold(registry, _profile(registry, order["target"]), "limit", change, text, seconds, who)
    return text


def _resume(registry: Registry, holds: Holds, order: dict[str, Any], who: str) -> str:
    ended = holds.release(_profile(registry, order["target"]))
    if not ended:
        raise ValueError(f"nothing is paused or limited in {order['target']!r}")
    return f"ended: {'; '.join(ended)}"


def _reload(registry: Registry, holds: Holds, order: dict[str, Any], who: str) -> str:
    changes = registry.reload()
    return f"reloaded: {', '.join([*changes.profiles, *changes.functions]) or 'nothing has changed'}"


def _seconds(order: dict[str, Any]) -> float:
    try:
        seconds = parse_duration(order.get("for", "10m"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"for: {message_of(error)}") from None
    if not 0 < seconds <= LONGEST_HOLD:
        raise ValueError(f"for: {order['for']!r} is not within a day")
    return seconds


ACTIONS: dict[str, Do] = {
    "force_open": _circuit("force_open", "forced open"),
    "force_closed": _circuit("force_closed", "forced closed"),
    "reset": _circuit("reset", "reset"),
    "reset_statistics": _reset_statistics,
    "pause": _pause,
    "limit": _limit,
    "resume": _resume,
    "reload": _reload,
}
