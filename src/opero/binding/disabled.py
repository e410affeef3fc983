"""OPERO_ENABLED, which switches all policies of the process off."""

from __future__ import annotations

import os

from opero.errors import ConfigError
from opero.policies.policy import Policy

__all__ = ["is_on", "plain"]

NAME = "OPERO_ENABLED"
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def is_on() -> bool:
    """Return the value of OPERO_ENABLED, in upper or lower case. Default: true.

    Raises:
        ConfigError: its value is neither true nor false.
    """
    text = os.environ.get(NAME, os.environ.get(NAME.lower(), "true"))
    if text.strip().lower() not in TRUE + FALSE:
        raise ConfigError(f"{NAME}: {text!r} is invalid: use true or false")
    return text.strip().lower() in TRUE


def plain(policy: Policy) -> Policy:
    """Return what is left of a policy while opero is switched off: a fallback result still answers."""
    fallback = policy.active("fallback")
    answers = fallback is not None and fallback.has_result
    return Policy(
        fallback=fallback.replace(arg=None) if answers else None,
        cache=policy.cache.replace(enabled=False) if policy.cache is not None else None,
        parallel=policy.parallel,
    )
