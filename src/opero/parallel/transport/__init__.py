"""What a parent process and its workers send each other, and how a worker process runs it."""
