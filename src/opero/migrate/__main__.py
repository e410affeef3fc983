"""`python -m opero.migrate`: the command `opero migrate`."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.argv.insert(1, "migrate")
    import_module("opero.cli").main()  # which imports this package, when the subcommand runs
