"""Mapping a function over many items: one engine, and one file for each kind of workers."""

is_worker = False
"""Whether this process is a map's worker: maps within it make no processes of their own."""
