"""What Python imports first in each process of a program that `opero run` has started: its folder is in PYTHONPATH."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).parent


def _run_the_other() -> None:
    """Run the sitecustomize that this one hides, if there is one."""
    others = [each for each in sys.path if not each or Path(each) != HERE]
    found = PathFinder.find_spec("sitecustomize", others)
    if found is not None and found.loader is not None:
        found.loader.exec_module(module_from_spec(found))


_run_the_other()
try:
    from opero.integrations.imports import bind_imports
except ImportError:  # another Python, in which opero is not installed
    sys.stderr.write(f"opero run: opero is not installed in {sys.prefix}; this process runs without it\n")
else:
    bind_imports()
