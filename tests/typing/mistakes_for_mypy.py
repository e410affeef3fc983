"""User mistakes that only mypy refuses, with pydantic's plugin. It is checked, and never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=false
from __future__ import annotations

from opero import Policy, RetryPolicy

# Policies are immutable
RetryPolicy().retries = 5  # type: ignore[misc]
Policy().retry = RetryPolicy()  # type: ignore[misc]
