"""Health: checks of a program and of what it depends on, and how often its functions fail."""
