"""Context variables across processes: by the name of a module's attribute, else by a number.

No variable is kept alive here: what is remembered of one is its `id`, which is compared with what the module has now.
"""

from __future__ import annotations

import contextvars
import importlib
import io
import pickle
import sys
import uuid
from types import CodeType
from typing import Any

import cloudpickle

from opero.observe.receipts import current
from opero.runtime.forking import at_fork

PROCESS = uuid.uuid4().hex
"""Identifies this process. A forked child gets another."""

NO_FILE = "<dynamic-code>"
"""What cloudpickle says instead of the file of a function."""
DECIMAL = "decimal_context"
"""The name of the variable that holds the context of `decimal`, which no module has as an attribute."""
MOST_REMADE = 1000

Variable = contextvars.ContextVar[Any]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, extended: context variables go by name if a module holds them, else by a number.

    And functions that go by value keep the names of their files, which cloudpickle drops: tracebacks show them.
    """

    def reducer_override(self, value: Any) -> Any:
        if type(value) is contextvars.ContextVar:
            return _reduced(value)
        if type(value) is CodeType:
            build, parts = self.dispatch_table[CodeType](value)
            return build, tuple([value.co_filename if part == NO_FILE else part for part in parts])
        return super().reducer_override(value)

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        file = io.BytesIO()
        cls(file, protocol=5).dump(value)
        return file.getvalue()


_attributes: dict[int, list[tuple[str, str]]] = {}
"""The modules and names that have held a context variable, by its `id`."""
_sizes: dict[str, tuple[int, int]] = {}
"""The modules that were searched: which namespace, and how many names it had."""


def _names(variable: Variable) -> list[tuple[str, str]]:
    """The modules and names from which a variable can be imported.

    A module is searched once, and again only when names have been added to it.
    """
    if not (names := _known(variable)):
        _search_new_names()
        names = _known(variable)
    return names


def _known(variable: Variable) -> list[tuple[str, str]]:
    # Another variable may have had the same id.
    known = _attributes.get(id(variable), ())
    return [(module, name) for module, name in known if _namespace(sys.modules.get(module)).get(name) is variable]


def _search_new_names() -> None:
    for module_name, module in list(sys.modules.items()):
        namespace = _namespace(module)
        size = id(namespace), len(namespace)
        if _sizes.get(module_name) == size or module_name in ("__main__", "__mp_main__"):
            continue
        _sizes[module_name] = size
        for name, value in list(namespace.items()):
            if type(value) is contextvars.ContextVar:
                known = _attributes.setdefault(id(value), [])
                if (module_name, name) not in known:
                    known.append((module_name, name))


def _namespace(module: Any) -> dict[str, Any]:
    return getattr(module, "__dict__", {})


def _reduced(variable: Variable) -> Any:
    names = _names(variable)
    if names:
        return _imported, (names,)
    try:
        default = (contextvars.Context().run(variable.get),)
    except LookupError:
        default = ()  # type: ignore[assignment]
    return _remade, (PROCESS, id(variable), variable.name, default)


def _imported(names: list[tuple[str, str]]) -> Any:
    """The variable of that name; from a module that is already loaded, if possible."""
    for module, name in sorted(names, key=lambda each: each[0] not in sys.modules):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            problem = error
    raise problem


_made: dict[tuple[str, int, str], Variable] = {}
"""The variables that stand for those of another process, by their `id` there, the newest last."""


def _remade(process: str, number: int, name: str, default: tuple[Any, ...]) -> Variable:
    """The variable that stands for one of another process.

    If that has ended, one with its id and name may have taken its place: it has no value here yet, so it may be the
    same, but for its default.
    """
    key = process, number, name
    made = _made.pop(key, None)
    if made is None or not _has_default(made, default):
        made = contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
    _made[key] = made
    if len(_made) > MOST_REMADE:
        del _made[next(iter(_made))]
    return made


def _has_default(variable: Variable, default: tuple[Any, ...]) -> bool:
    try:
        own = contextvars.Context().run(variable.get)
    except LookupError:
        return not default
    try:
        return bool(default) and type(own) is type(default[0]) and bool(own == default[0])
    except Exception:  # noqa: BLE001  # its comparison fails, or has no single answer, as for arrays
        return False


def pickled_variables() -> bytes:
    """The variables of the current context whose values can be pickled."""
    pairs = []
    for variable, value in contextvars.copy_context().items():
        if variable is current:
            continue  # a receipt is written in this process only
        try:
            pairs.append(Pickler.dumps((DECIMAL if _is_of_decimal(variable, value) else variable, value)))
        except Exception:  # noqa: BLE001  # its value stays here
            continue
    return pickle.dumps(pairs)


def _is_of_decimal(variable: Variable, value: Any) -> bool:
    return variable.name == DECIMAL and isinstance(value, getattr(sys.modules.get("decimal"), "Context", ()))


def context_of(pickled: bytes) -> contextvars.Context:
    """A context in which the variables have the values that they had when they were pickled."""
    context = contextvars.Context()
    for pair in pickle.loads(pickled):
        try:
            variable, value = pickle.loads(pair)
            if variable == DECIMAL:
                import decimal

                context.run(decimal.setcontext, value)
            else:
                context.run(variable.set, value)
        except Exception:  # noqa: BLE001  # like one that cannot be pickled
            continue
    return context


def _forked() -> None:
    """In a forked child, which may be a worker: forget the identity of the parent."""
    global PROCESS  # noqa: PLW0603  # one per process
    PROCESS = uuid.uuid4().hex


at_fork(in_child=_forked)
