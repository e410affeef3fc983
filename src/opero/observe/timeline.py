"""The text of a receipt: a line for each call and step, those of nested calls indented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

Data = dict[str, Any]

SAME = 2e-6
"""Seconds by which rounding may move a time."""
CACHE = {
    "cache_hit": "cache: hit",
    "cache_miss": "cache: miss",
    "cache_stale": "cache: answered with an old result",
    "cache_refreshed": "cache: refreshed in the background",
}
WAITED_FOR = {"rate_limit": "a permit of the rate limit", "bulkhead": "a slot of the bulkhead"}


def timeline(receipt: Data) -> str:
    """Return the text of a receipt, given as the data that its `as_dict` returns."""
    began = datetime.fromtimestamp(receipt["time"], UTC)
    head = f"{began:%Y-%m-%d %H:%M:%S}.{began.microsecond // 1000:03} UTC"
    versions = sorted({*_versions(receipt)})
    if versions:
        head += f", configuration {' and '.join(versions)}"
    if receipt.get("event") == "call":
        return "\n".join([head, *_call(receipt, 0)])
    calls = sum(step["event"] == "call" for step in receipt["steps"])
    taken = "so far" if receipt["seconds"] is None else f"in {_seconds(receipt['seconds'])}"
    lines = [f"{head}: {calls} {'call' if calls == 1 else 'calls'} {taken}", *_steps(receipt["steps"], 0)]
    if receipt["omitted"]:
        lines.append(f"{'':10}and {receipt['omitted']} more that were not recorded")
    return "\n".join(lines)


def _versions(receipt: Data) -> Iterator[str]:
    if receipt.get("configuration"):
        yield receipt["configuration"]
    for step in receipt["steps"]:
        if step["event"] == "call":
            yield from _versions(step)


def _line(at: float, depth: int, text: str) -> str:
    return f"{at:9.3f}  {'  ' * depth}{text}"


def _call(call: Data, depth: int) -> Iterator[str]:
    profile = f" [{call['policy']}]" if call["policy"] else ""
    yield _line(call["at"], depth, f"{call['function']}{profile}")
    if call["seconds"] is None:
        yield from _steps(call["steps"], depth + 1)
        return
    ended = call["at"] + call["seconds"]
    count = sum(step["at"] <= ended + SAME for step in call["steps"])  # later ones: as of a refresh in the background
    yield from _steps(call["steps"][:count], depth + 1)
    error = f": {_error(call['error'])}" if call["error"] else ""
    yield _line(ended, depth + 1, f"{call['outcome']} after {_seconds(call['seconds'])}{error}")
    yield from _steps(call["steps"][count:], depth + 1)


def _steps(steps: list[Data], depth: int) -> Iterator[str]:
    failed = 0
    for step in steps:
        if step["event"] == "call":
            yield from _call(step, depth)
            continue
        failed += step["event"] == "attempt_failed"
        text = TEXTS.get(step["event"], _other)(step, failed)
        yield _line(step["at"], depth, f"{step['function']}: {text}" if "function" in step else text)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _error(error: Data) -> str:
    return f"{error['type']}: {error['message']}" if error["message"] else str(error["type"])


def _known(number: int | None) -> str:
    return "some" if number is None else str(number)


def _in(step: Data, text: str) -> str:
    return "" if step["retry_in"] is None else f"{text} {_seconds(step['retry_in'])}"


def _attempt_failed(step: Data, number: int) -> str:
    taken = "" if step["seconds"] is None else f" after {_seconds(step['seconds'])}"
    why = f" ({step['reason']})" if step["reason"] not in ("", step["error"]["type"]) else ""
    which = "attempt" if "function" in step else f"attempt {number}"
    asks = _in(step, ", asks to wait")
    return f"{which} failed{taken}: {step['kind']}{why}{asks}: {_error(step['error'])}"


def _retry_scheduled(step: Data, _: int) -> str:
    why = "as the failure asks" if step["is_asked"] else "backoff"
    return f"round {step['attempt']} in {_seconds(step['delay'])} ({why})"


def _fallback_used(step: Data, _: int) -> str:
    what = {"value": "the next value", "default": "the default"}.get(step["what"], "the function")
    return f"fallback: {what}, after {_error(step['error'])}"


def _value(step: Data) -> str:
    return f"value {step['position'] + 1} of {step['argument']}"


def _circuit(step: Data, _: int) -> str:
    reason = f", after {step['reason']}" if step["reason"] else ""
    counts = f" ({step['failures']} of {step['calls']} calls failed)" if step["calls"] else ""
    return f"circuit {step['breaker']}: {step['before']} → {step['state']}{counts}{reason}"


def _shadowed(step: Data, _: int) -> str:
    seconds = "" if step["seconds"] is None else f" ({_seconds(step['seconds'])})"
    message = f": {step['message']}" if step["message"] else ""
    return f"in shadow: the {step['by'].replace('_', ' ')} would {step['would'].replace('_', ' ')}{seconds}{message}"


def _map_finished(step: Data, _: int) -> str:
    progress = step["progress"]
    failed = f", {progress['failures']} failed" if progress["failures"] else ""
    error = f": {_error(step['error'])}" if step["error"] else ""
    return f"map finished, {progress['done']} items done{failed}{error}"


def _other(step: Data, _: int) -> str:
    known = {name: value for name, value in step.items() if name not in ("event", "time", "at", "function")}
    told = ", ".join(f"{name} {_short(value)}" for name, value in known.items() if value not in (None, "", [], {}))
    text = CACHE.get(step["event"], step["event"].replace("_", " "))
    return f"{text}: {told}" if told else text


def _short(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"type", "message"}:
        return _error(value)
    if isinstance(value, dict):
        return " ".join(f"{name} {each}" for name, each in value.items() if each is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


TEXTS: dict[str, Callable[[Data, int], str]] = {
    "attempt_failed": _attempt_failed,
    "retry_scheduled": _retry_scheduled,
    "hedge_started": lambda step, _: f"hedged by attempt {step['attempt']} after {_seconds(step['delay'])}",
    "fallback_used": _fallback_used,
    "map_started": lambda step, _: f"map of {_known(step['total'])} items started, mode {step['mode']}",
    "map_finished": _map_finished,
    "waited": lambda step, _: (
        f"waited {_seconds(step['seconds'])} for {WAITED_FOR.get(step['what'], 'a value that is not throttled')}"
    ),
    "rejected": lambda step, _: (
        f"rejected by the {step['by'].replace('_', ' ')}{_in(step, ', free again in')}: {_error(step['error'])}"
    ),
    "shadowed": _shadowed,
    "limit_changed": lambda step, _: f"{step['what']}: adaptive limit {step['before']} → {step['after']}",
    "rate_limit_paused": lambda step, _: (
        f"rate limit {step['limit']}: paused for {_seconds(step['seconds'])}, as the service asks ({step['reason']})"
    ),
    "rate_limit_adapted": lambda step, _: f"rate limit {step['limit']}: {step['before']:.3g}/s → {step['rate']:.3g}/s",
    "timed_out": lambda step, _: f"{step['scope']} timeout: {_error(step['error'])}",
    "value_set_aside": lambda step, _: f"{_value(step)} set aside for {_seconds(step['seconds'])}: {step['kind']}",
    "value_restored": lambda step, _: f"{_value(step)} works again",
    **dict.fromkeys(("circuit_opened", "circuit_half_opened", "circuit_closed", "circuit_forced"), _circuit),
}
