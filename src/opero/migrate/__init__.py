"""Replaces the retry decorators of tenacity, stamina and backoff by profiles (extra `migrate`)."""
