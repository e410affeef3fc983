"""`python -m opero`: the command."""

from __future__ import annotations

from opero.cli import main

if __name__ == "__main__":
    main()
