"""The table of all records that opero logs: their levels, their fields, and how often they may come."""

from __future__ import annotations

import logging
from typing import NamedTuple

MOST = {logging.DEBUG: 0, logging.INFO: 1, logging.WARNING: 10, logging.ERROR: 10}
"""Level → how many lines of one kind and function there may be within a period; 0 for any number."""


class Record(NamedTuple):
    """One kind of record.

    Attributes:
        level: its level.
        fields: the names of its fields, besides `event`, `function` and `policy`, which every record has.
        most: how many lines of it a function may cause within a minute; 0 for any number.
    """

    level: int
    fields: tuple[str, ...] = ()
    most: int = 0


def _record(level: int, fields: str = "", most: int | None = None) -> Record:
    return Record(level, tuple(fields.split()), MOST[level] if most is None else most)


_D, _I, _W, _E = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR
RECORDS: dict[str, Record] = {
    # Calls
    "retry_scheduled": _record(_D, "attempt delay kind status error error_message"),
    "retry_refused": _record(_I, "delay error error_message"),
    "call_recovered": _record(_I, "attempts"),
    "waiting": _record(_D, "what seconds"),
    "fallback_used": _record(_I, "what error error_message"),
    "value_set_aside": _record(_W, "argument position hash kind seconds"),
    "value_restored": _record(_I, "argument position hash"),
    "circuit_opened": _record(_W, "breaker before state reason failures calls"),
    "circuit_half_opened": _record(_I, "breaker before state reason failures calls"),
    "circuit_closed": _record(_I, "breaker before state reason failures calls"),
    "circuit_forced": _record(_W, "breaker before state reason failures calls"),
    "circuit_shadowed": _record(_I, "breaker before state reason failures calls"),
    "rate_limit_paused": _record(_I, "limit seconds reason"),
    "condition_failed": _record(_W, "error error_message"),
    "classify_failed": _record(_W, "error error_message"),
    "cost_unknown": _record(_W, "limit"),
    "argument_read_once": _record(_W, "argument"),
    # Caches
    "cache_failed": _record(_W, "cache what error error_message"),
    "cache_restored": _record(_I, "cache what skipped"),
    "cache_function_failed": _record(_W, "what error error_message"),
    "cache_file_damaged": _record(_W, "path error error_message"),
    "cache_directory_unsafe": _record(_W, "path"),
    "cache_app_unknown": _record(_W, "path"),
    "cache_lock_lapsed": _record(_D, "error error_message"),
    # Limits that processes share
    "store_failed": _record(_W, "store error error_message"),
    "store_restored": _record(_I, "store skipped"),
    "limit_differs": _record(_W, "", 1),
    # The configuration; each of these comes from one load or reload, which an operator has caused
    "configuration_warning": _record(_W, "", 0),
    "configuration_reloaded": _record(_I, "reason profiles functions", 0),
    "configuration_valid": _record(_I, "", 0),
    "configuration_rejected": _record(_E, "reason error error_message", 0),
    "policy_unfit": _record(_W),
    "reload_failed": _record(_E, "error error_message"),
    # Maps
    "map_mode_changed": _record(_I, "mode error error_message"),
    "map_in_daemon": _record(_W, "mode", 1),
    "map_memory_limited": _record(_I, "used limit"),
    "map_worker_lost": _record(_W, "index"),
    "map_progress_failed": _record(_E, "error error_message"),
    "map_tuned": _record(_I, "", 0),
    "map_not_tuned": _record(_I, "error error_message", 0),
    "journal_not_closed": _record(_W, "path error error_message"),
    "journal_longer": _record(_W, "path"),
    "journal_unsafe": _record(_W, "path"),
    "journal_item_skipped": _record(_W, "path"),
    # Alerts, which have a limit of their own
    "alert_fired": _record(_E, "alert text functions policies seconds", 0),
    "alert_resolved": _record(_I, "alert text functions policies seconds", 0),
    "alert_not_sent": _record(_E, "alert error error_message"),
    "alert_failed": _record(_E, "error error_message"),
    # Servers and metrics; each action is logged, with who asked for it
    "action_taken": _record(_W, "action target by", 0),
    "action_refused": _record(_W, "action target by error error_message", 0),
    "action_ended": _record(_W, "target by", 0),
    "request_failed": _record(_E, "path error error_message"),
    "request_broken": _record(_D, "error error_message"),
    "page_served": _record(_I, "url", 0),
    "page_not_served": _record(_W, "error error_message"),
    "page_not_found": _record(_D, "error error_message"),
    "configuration_not_watched": _record(_W, "error error_message"),
    "sighup_not_heard": _record(_I, "", 0),
    "metrics_not_written": _record(_W, "error error_message"),
    "metrics_missing": _record(_E, "error error_message"),
    # Opero itself
    "observer_failed": _record(_E, "observer error error_message"),
    "receipt_incomplete": _record(_D, "of_event error error_message"),
    "handler_failed": _record(_E, "handler of_event error error_message"),
    "file_not_locked": _record(_W, "path error error_message"),
    "directory_not_synced": _record(_D, "path error error_message"),
    "background_failed": _record(_W, "error error_message"),
}
"""Name → every kind of record that opero logs. docs/logging.md says when each of them comes."""
ENDED_BY = {
    "circuit_opened": "circuit_closed",
    "circuit_forced": "circuit_closed",
    "cache_failed": "cache_restored",
    "store_failed": "store_restored",
    "value_set_aside": "value_restored",
}
"""What a line says the beginning of → the record of its end, which is never left out then."""
