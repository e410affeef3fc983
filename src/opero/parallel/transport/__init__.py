"""What travels between a parent process and its workers, and how a worker process runs it."""
