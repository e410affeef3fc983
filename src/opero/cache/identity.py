"""Which function a result in a store belongs to, among all programs that use the store.

A function of a module is its program, its file and its name. Where these do not tell it from others (in scripts and
notebooks, for local functions and lambdas, and where a module defines a name more than once), its code does.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from opero.cache.content import freeze
from opero.cache.digest import digest
from opero.cache.fingerprint import fingerprint, innermost
from opero.errors import ConfigError
from opero.runtime.functions import full_name
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.policies.cache import CachePolicy

MAIN = ("__main__", "__mp_main__")
"""What a script is called as a module: in its own process, and in those that `multiprocessing` spawns."""
MARKERS = ("pyproject.toml", "setup.py", "setup.cfg", ".git", ".hg")
"""What the root of a project contains."""
CELL = re.compile(r"^<|[/\\]\.?ipykernel[_/\\]|[/\\]marimo_\d+[/\\]")
"""Names of files that do not exist: of cells in notebooks, and of text that was executed."""


def name_in_stores(function: Callable[..., Any]) -> str:
    """Return a function's name: `module.qualname`, with a digest where that is not unique in its program.

    The digest covers the code and closure of a local function or lambda, the instance of a bound method, the arguments
    of a `partial`, and any other callable object itself.

    Raises:
        ConfigError: a part of the digest has no meaning in other processes.
    """
    name, core, suffix = _parts(function)
    if core is not None and _is_local(core):
        suffix = f"-{fingerprint(core)}{suffix}"
    return f"{name}{suffix}"


class Identity:
    """What a function is called in a store, found when the store is first used: by then its module is complete.

    Args:
        function: the function.
        policy: its cache policy, of which `app`, `version` and `follow_code` count.
        app: the name of the program where the policy has none; None if it has none either.
        on_network: whether programs of other machines may use the store.

    Attributes:
        name: its full name in this program, `module.qualname`.

    Raises:
        ConfigError: the function cannot be told from others, or its code cannot be followed.
    """

    def __init__(
        self, function: Callable[..., Any], policy: CachePolicy, app: str | None = None, *, on_network: bool = False
    ) -> None:
        self.name, self._core, self._suffix = _parts(function)
        self.app = policy.app or app
        self.version = policy.version
        self.follows_code = policy.follow_code
        self.on_network = on_network
        if self.follows_code and self._core is None:
            raise ConfigError(
                f"{self.name}: cache.follow_code has no effect, as it is not written in Python: set cache.version "
                "whenever its results change"
            )

    def is_made_as(self, other: Identity) -> bool:
        """Return whether the other, of the same function, is made of the same options."""
        names = ("app", "version", "follows_code", "on_network")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @functools.cached_property
    def text(self) -> str:
        """The name: `module.qualname@app-digest`, without what does not apply."""
        core, module = self._core, self._module
        is_main = module in MAIN
        file, follows = _file_of(core, module), self.follows_code
        root, project = _project_of(file)
        name = self.name
        if is_main:
            name = f"{Path(file).stem or 'main'}{name.removeprefix(module)}"
        parts: list[str] = []
        if self.app is None:
            place = file or f"{_notebook()} in {_working_directory()}"
            parts += [place, project]
            if self.on_network and not project:
                follows = True
                _warn_of_no_app(place)
        elif is_main:
            parts.append(os.path.relpath(file, root) if root else os.path.basename(file))
        if core is not None and (
            follows or is_main or _is_local(core) or _is_decorated(core) or _is_ambiguous(module, core.__qualname__)
        ):
            parts.append(fingerprint(core, follows=follows or is_main))
        if self.version is not None:
            parts.append(f"version {self.version}")
        owner = _quoted(self.app or project)
        if parts:
            text = "\0".join(parts).encode("utf-8", "surrogatepass")
            owner += f"{'-' if owner else ''}{blake2b(text, digest_size=8).hexdigest()}"
        return f"{name}{self._suffix}@{owner}"

    @property
    def _module(self) -> str:
        core = self._core
        return str(getattr(core, "__module__", None) or self.name.partition(".")[0])


def _parts(function: Any) -> tuple[str, FunctionType | None, str]:
    """Return a function's full name, the Python function in it, and the digests of what it is bound to."""
    if isinstance(function, functools.partial):
        name, within, suffix = _parts(function.func)
        return name, within, f"{suffix}-{digest(freeze((function.args, function.keywords)))[:12]}"
    if getattr(function, "__qualname__", None) is None:
        kind: Any = type(function)
        call = innermost(kind.__call__)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return name, call, f"-{digest(freeze(function))[:12]}"
    name, suffix = full_name(function), ""
    instance = getattr(function, "__self__", None)
    if instance is not None and not isinstance(instance, type | ModuleType):
        suffix = f"-{digest(freeze(instance))[:12]}"
    core: Any = function.__func__ if isinstance(function, MethodType) else function
    return name, core if isinstance(core, FunctionType) else None, suffix


def _is_local(function: FunctionType) -> bool:
    return "<locals>" in function.__qualname__ or "<lambda>" in function.__qualname__


def _is_decorated(function: FunctionType) -> bool:
    """Return whether it has the name of another function, which a decorator has put it in the place of."""
    return function.__code__.co_qualname != function.__qualname__


def _is_ambiguous(module: str, qualname: str) -> bool:
    """Return whether a module defines a name more than once: overwritten, by a condition, or registered elsewhere."""
    return _definitions(module)[qualname] > 1


@functools.lru_cache(256)
def _definitions(module: str) -> Counter[str]:
    """Return how often each function of a module is defined in its code."""
    found: Counter[str] = Counter()
    spec = getattr(sys.modules.get(module), "__spec__", None)
    try:
        code = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    except Exception:  # noqa: BLE001  # it has no code, or a loader of its own, which may raise anything
        code = None
    waiting = [] if code is None else [code]
    while waiting:
        inner = [each for each in waiting.pop().co_consts if isinstance(each, CodeType)]
        found.update(each.co_qualname for each in inner)
        waiting += inner
    return found


def _file_of(function: FunctionType | None, module: str) -> str:
    """Return the file that defines a function; "" if there is none, as in notebooks."""
    if getattr(sys, "frozen", False):  # its modules may be unpacked to another place at each start
        return os.path.realpath(sys.executable)
    file: str | None = None if module in MAIN else getattr(sys.modules.get(module), "__file__", None)
    if file is None and function is not None:
        file = _unwrapped(function).__code__.co_filename
    if file is None or CELL.search(file):
        return ""
    return os.path.realpath(file.removesuffix("c") if file.endswith(".pyc") else file)


def _unwrapped(function: FunctionType) -> FunctionType:
    inner: Any
    while isinstance(inner := getattr(function, "__wrapped__", None), FunctionType):
        function = inner  # what a decorator of another file has wrapped
    return function


@functools.lru_cache(256)
def _project_of(file: str) -> tuple[str, str]:
    """Return the root of the project that a file belongs to, and its name in pyproject.toml; "" for what is unknown."""
    for folder in Path(file).parents if file else ():
        if any((folder / marker).exists() for marker in MARKERS):
            return str(folder), _name_of_project(folder / "pyproject.toml")
    return "", ""


def _name_of_project(file: Path) -> str:
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    for table in (content.get("project"), (content.get("tool") or {}).get("poetry")):
        if isinstance(table, dict) and isinstance(table.get("name"), str):
            return str(table["name"])
    return ""


def _notebook() -> str:
    """Return the file of the notebook that runs, where Jupyter says so."""
    name = os.environ.get("JPY_SESSION_NAME", "")
    return name if name.endswith(".ipynb") else ""


def _quoted(text: str) -> str:
    """Return a name with what separates the parts of keys replaced."""
    return re.sub(r"[%:#@{}\s]", lambda found: f"%{ord(found[0]):02X}", text)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been deleted
        return ""


_warned: set[str] = set()


def _warn_of_no_app(place: str) -> None:
    """Say once for each file that another container may have the same one."""
    if place not in _warned:
        _warned.add(place)
        text = (
            "results of functions in %s are kept in a network store under that path, as its program has no name: one "
            "with the same code at the same path, as in another container, would read them; set cache.app, or the "
            "variable OPERO_CACHE_APP"
        )
        log("cache_app_unknown", text, place, path=place)
