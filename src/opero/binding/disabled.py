"""OPERO_ENABLED, which switches all policies of the process off, and the same switch for tests."""

from __future__ import annotations

from opero.policies.policy import Policy
from opero.runtime.environment_files import flag

NAME = "OPERO_ENABLED"

_suspended = False


def is_suspended() -> bool:
    """Return whether a test has switched off all policies, until it switches them on again."""
    return _suspended


def suspend(*, suspended: bool) -> bool:
    """Switch off or on the policies of all pipelines that are built from now on; return what was before."""
    global _suspended  # one per process
    before, _suspended = _suspended, suspended
    return before


def is_on() -> bool:
    """Return the value of OPERO_ENABLED, in upper or lower case. Default: true.

    Raises:
        ConfigError: its value is neither true nor false.
    """
    return flag(NAME, default=True)


def plain(policy: Policy) -> Policy:
    """Return what is left of a policy while opero is switched off: a fallback result still answers."""
    fallback = policy.active("fallback")
    answers = fallback is not None and fallback.has_result
    return Policy(
        fallback=fallback.replace(arg=None) if answers else None,
        cache=policy.cache.replace(enabled=False) if policy.cache is not None else None,
        parallel=policy.parallel,
    )
