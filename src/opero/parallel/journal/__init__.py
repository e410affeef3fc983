"""Journals: files in which a map records finished items, so that it can resume after a crash."""
