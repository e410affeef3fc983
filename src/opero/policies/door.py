"""The one way up from policies: what applies them is loaded by name, when a policy is first applied.

So policies can be made, compared and written down without any of the machinery that runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opero.policies.refusals import made

if TYPE_CHECKING:
    from opero.runtime.clock import Clock


def apply(fields: Any, func: Callable[..., Any], clock: Clock | None) -> Any:
    """Bind a `Policy`, or a policy of the given fields, to a function."""
    policy: Any = made(import_module("opero.policies.policy").Policy, fields)
    return import_module("opero.bound").bind(policy, func, clock=clock)
