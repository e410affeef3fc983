"""Alerts: rules over events and counts of calls, and notifications of the log, functions and webhooks."""
