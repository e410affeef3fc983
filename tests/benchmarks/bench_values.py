"""What choosing among the values of a fallback argument costs a call that succeeds."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.harness import Row, compare

from opero import opero

KEYS = [f"key-{number}" for number in range(10)]
MOST = 1000
"""Nanoseconds for choosing among ten values."""


class RefusedError(Exception):
    status_code = 401


def ask(key: str) -> str:
    if key == "dead":
        raise RefusedError
    return key


def by_hand(key: str) -> str:
    try:
        return ask(key)
    except Exception:
        raise


def choosing(name: str, rounds: int, values: list[str] = KEYS, **fallback: Any) -> Row:
    """What choosing the value to begin with takes, of ten that have all been asked before."""
    bound: Any = opero(fallback={"arg": "key", **fallback})(ask)
    for _ in range(3 * len(values)):
        bound(values)
    executor = bound.binding.resolved().executors["retry"]
    assert executor.pick(values) >= 0
    if not executor.counts:
        row = compare(name, lambda: executor.pick(values), "", lambda: None, rounds)
    else:
        ids, memory = executor.memory.ids(values), executor.memory
        row = compare(
            name,
            lambda: memory.give_back(ids[executor.pick(values)]),
            "",
            lambda: None,
            rounds,
            less=lambda: memory.give_back(ids[0]),
        )
    return Row(name, row.ours, "the aim", MOST, row.ours / MOST, 1.0)


def run(rounds: int) -> list[Row]:
    plain: Any = opero(retries=3)(ask)
    single: Any = opero(arg_fallback="key")(ask)
    several: Any = opero(arg_fallback="key")(ask)
    several(KEYS)
    return [
        choosing("choose among 10 values", rounds),
        choosing("choose, the first value being set aside", rounds, ["dead", *KEYS[1:]]),
        choosing("choose, round robin", rounds, order="round_robin"),
        choosing("choose, weighted", rounds, order="weighted", weights=list(range(1, 11))),
        choosing("choose, least loaded", rounds, order="least_loaded"),
        compare("a call with 10 values", lambda: several(KEYS), "with one", lambda: single("key"), rounds),
        compare("a single value", lambda: single("key"), "without fallback", lambda: plain("key"), rounds),
        compare("a function without fallback", lambda: plain("key"), "by hand", lambda: by_hand("key"), rounds),
    ]
