"""One run of a map: reading items, dispatching chunks, collecting results."""
