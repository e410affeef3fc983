"""Events, statistics and logging."""
