"""Mapping a function over many items: one engine, and one file for each kind of workers."""
