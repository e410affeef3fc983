"""The homes that policies state: `share` says that the state of a limit is not only that of one process."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opero.runtime.clock import SYSTEM

if TYPE_CHECKING:
    from opero.executors.state.home import Holder

MAIN = ("__main__", "__mp_main__")


H = TypeVar("H", bound="Holder[Any]")


def sharing(executor: H, name: str, *key: Any) -> H:
    """Have an executor share its state if its policy says so, and return it. Virtual time is that of one process, so
    there it does not.

    Args:
        executor: the executor, whose state is in this process.
        name: the name of the profile, or of the function, under which it is shared unless the policy has another one.
        key: the key whose state it is, in a keyed scope.

    Raises:
        ConfigError: the policy's URL is invalid, or what it needs is missing.
    """
    policy: Any = executor.policy
    if getattr(policy, "share", "process") != "process" and getattr(executor, "clock", SYSTEM) is SYSTEM:
        join = _join_machine if policy.share == "machine" else _join_redis
        shared_as = policy.share_as or _in_all_processes(name)
        join(executor, f"{shared_as}/{_digest_of(*key)}" if key else shared_as, name)
    return executor


def _join_machine(executor: Holder[Any], shared_as: str, name: str) -> None:
    from opero.executors.state.machine_home import join_machine

    join_machine(executor, shared_as, f"{name}: {executor.policy.kind}")


def _join_redis(executor: Holder[Any], shared_as: str, name: str) -> None:
    from opero.executors.state.redis_store import store_of

    policy, own = executor.policy, executor.own
    store = store_of(policy, f"{name}: {policy.kind}")
    key = f"{_quoted(shared_as)}/{policy.kind}"
    home: Any
    if policy.kind == "rate_limit" and (policy.limits or policy.is_estimated):
        from opero.executors.state.redis_budgets import RedisBudgets

        home = RedisBudgets(store, f"{key}s" if policy.limits else key, policy, own, name)
    elif policy.kind == "rate_limit":
        from opero.executors.state.redis_budget import RedisBudget

        home = RedisBudget(store, key, policy, own, name)
    elif policy.kind == "circuit_breaker":
        from opero.executors.state.redis_circuit import RedisCircuit

        home = RedisCircuit(store, key, policy, SYSTEM.monotonic, name)
    elif policy.kind == "retry":
        from opero.executors.state.redis_allowance import RedisAllowance

        home = RedisAllowance(store, key, policy, SYSTEM.monotonic, name)
    else:
        from opero.executors.state.redis_slots import RedisSlots

        home = RedisSlots(store, key, policy, SYSTEM.monotonic, name)
    home.stated = {"share_as": shared_as, "url": store.url}
    executor.join(home)


def _in_all_processes(name: str) -> str:
    """Return the name of a function with the name of the script in place of `__main__`, which every script has."""
    module, _, rest = name.partition(":")
    if module not in MAIN:
        return name
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return f"{Path(file).stem if file else 'main'}:{rest}"


def _digest_of(key: Any) -> str:
    """Return text that is the same for equal keys in all processes.

    Raises:
        ConfigError: a key of this type has none.
    """
    from opero.cache.content import freeze
    from opero.cache.digest import digest

    return digest(freeze(key))


def _quoted(text: str) -> str:
    """Return a name without what has a meaning in the names of keys."""
    return re.sub(r"[%{}\s]", lambda found: f"%{ord(found[0]):02X}", text)
