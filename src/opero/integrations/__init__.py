"""What connects opero with servers and monitoring systems, one module for each."""
