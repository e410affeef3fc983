"""Mapping a function over many items: one engine, and one file for each kind of workers."""

from contextvars import ContextVar

is_worker = False
"""Whether this process is a map's worker: maps within it start no processes of their own."""

is_in_worker: ContextVar[bool] = ContextVar("is_in_worker", default=False)
"""Whether this is a call that a worker makes, in any process: maps within it use its own thread."""
