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


def sharing(executor: H, name: str) -> H:
    """Have an executor share its state if its policy says so, and return it. Virtual time is that of one process, so
    there it does not.

    Args:
        executor: the executor, whose state is in this process.
        name: the name of the profile, or of the function, under which it is shared unless the policy has another one.

    Raises:
        ConfigError: the policy's URL is invalid, or what it needs is missing.
    """
    policy: Any = executor.policy
    if getattr(policy, "share", "process") != "process" and getattr(executor, "clock", SYSTEM) is SYSTEM:
        join = _join_machine if policy.share == "machine" else _join_redis
        join(executor, policy.share_as or _in_all_processes(name), name)
    return executor


def _join_machine(executor: Holder[Any], shared_as: str, name: str) -> None:
    from opero.executors.state.machine_home import join_machine

    join_machine(executor, shared_as, f"{name}: {executor.policy.kind}")


def _join_redis(executor: Holder[Any], shared_as: str, name: str) -> None:
    from opero.executors.state.budgets import LocalBudgets
    from opero.executors.state.redis_budget import RedisBudget
    from opero.executors.state.redis_store import store_of

    policy = executor.policy
    store = store_of(policy, f"{name}: {policy.kind}")
    home: Any
    if isinstance(executor.own, LocalBudgets):
        from opero.executors.state.redis_budgets import RedisBudgets

        kind = f"{policy.kind}s" if policy.limits else policy.kind
        home = RedisBudgets(store, f"{_quoted(shared_as)}/{kind}", policy, executor.own, name)
    else:
        home = RedisBudget(store, f"{_quoted(shared_as)}/{policy.kind}", policy, executor.own, name)
    home.stated = {"share_as": shared_as, "url": store.url}
    executor.join(home)


def _in_all_processes(name: str) -> str:
    """Return the name of a function with the name of the script in place of `__main__`, which every script has."""
    module, _, rest = name.partition(":")
    if module not in MAIN:
        return name
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return f"{Path(file).stem if file else 'main'}:{rest}"


def _quoted(text: str) -> str:
    """Return a name without what has a meaning in the names of keys."""
    return re.sub(r"[%{}\s]", lambda found: f"%{ord(found[0]):02X}", text)
