"""Binds the functions and clients that `imports:` names when they are imported: what `opero run` does to a program.

A process that imports none of these modules pays for this one only, so the rest of opero is imported where it binds.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VARIABLE = "_OPERO_RUN"
"""What `opero run` tells the processes of the program, as JSON: its process id, and function → profile. `opero init`
tells them the file to which requests are noted."""
EVERY = "*"
CLIENTS = ""
"""The name, in its module, of all clients of a library."""


class ImportHook(MetaPathFinder):
    """Finds the modules that are named, as the other finders do, and binds their functions when they have run.

    Args:
        targets: "module:function", "module:Class.method", "module:*", or a library → the name of its profile.
        watch: called with each of the modules instead, when it has run.

    Attributes:
        has_bound: whether it has bound a function in this process.
    """

    def __init__(self, targets: Mapping[str, str], watch: Callable[[ModuleType], None] | None = None) -> None:
        self._watch = watch
        self._waiting: dict[str, dict[str, str]] = {}
        for target, profile in targets.items():
            module, _, name = target.partition(":")
            self._waiting.setdefault(module, {})[name] = profile
        self.has_bound = False

    def install(self) -> None:
        """Bind what is imported already, and from now on what will be.

        Raises:
            ConfigError: a function cannot be bound.
        """
        sys.meta_path.insert(0, self)
        for name in [each for each in self._waiting if each in sys.modules]:
            self.bind(sys.modules[name])

    @property
    def waiting(self) -> list[str]:
        """The modules that have not been imported."""
        return list(self._waiting)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _BindingLoader(spec.loader, self)
                return spec
        return None

    def bind(self, module: ModuleType) -> None:
        """Bind the functions of a module that has been executed.

        Raises:
            ConfigError: a function does not exist, or cannot be bound.
        """
        names = self._waiting.pop(module.__name__, {})
        if self._watch is not None:
            self._watch(module)
            return
        from opero.registry.default import get_default_registry

        registry = get_default_registry()
        if CLIENTS in names:
            from opero.integrations.client_imports import put_under

            put_under(module, names.pop(CLIENTS), registry)
            self.has_bound = True
        for name, profile in names.items():
            for each in _functions_of(module, names) if name == EVERY else (name,):
                registry.bind_import(f"{module.__name__}:{each}", profile)
                self.has_bound = True


class _BindingLoader(Loader):
    """Executes a module as its own loader does, then binds its functions."""

    def __init__(self, loader: Loader, hook: ImportHook) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # resources and submodules are asked of it
        self._loader.exec_module(module)
        self._hook.bind(module)


def _functions_of(module: ModuleType, named: Mapping[str, str]) -> list[str]:
    """The public functions that a module defines, but for those that are named or bound by themselves."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and inspect.isfunction(inspect.unwrap(value))
        and not isinstance(value, type)
        and value.__module__ == module.__name__
        and not (name.startswith("_") or name in named or hasattr(value, "binding"))
    ]


def bind_imports() -> None:
    """Bind functions in a process of a program that `opero run` has started, and print at its end what they did.

    Raises:
        ConfigError: a function cannot be bound.
    """
    first, targets, noted = json.loads(os.environ[VARIABLE])
    if noted is not None:
        from opero.integrations.request_log import TARGETS, RequestLog

        ImportHook(dict.fromkeys(TARGETS, ""), RequestLog(noted).watch).install()
        return
    hook = ImportHook(targets)
    hook.install()
    atexit.register(_print_summary, hook, first)


def _print_summary(hook: ImportHook, first: int) -> None:
    """Print a line for each function that was called in this process, and in the first for modules not imported."""
    is_first = os.getpid() == first
    if hook.has_bound:
        from opero.registry.default import get_default_registry

        where = "" if is_first else f" in process {os.getpid()}"
        for name, stats in get_default_registry().stats()["functions"].items():
            if stats["calls"]:
                print(f"opero: {name}{where}: {described(stats)}", file=sys.stderr)
    if is_first and hook.waiting:
        print(f"opero: not imported in this process: {', '.join(hook.waiting)}", file=sys.stderr)


def described(stats: Mapping[str, Any]) -> str:
    """The counts of a function in words: "calls 12, failures 0, retries 3, waited 1.2 s"."""
    counts = {name: stats[name] for name in ("calls", "failures", "retries", "cache_hits", "rejections", "timeouts")}
    shown = [
        f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count or name in ("calls", "failures")
    ]
    return ", ".join([*shown, *([f"waited {stats['waited']:.1f} s"] if stats["waited"] >= 0.05 else [])])
