"""Policies by name, and the functions bound to them."""
