"""The public API is recorded in a file, so that every change of it is visible.

After an intended change, update the file with `python tests/test_public_surface.py`, and CHANGELOG.md.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path
from typing import Any, get_origin

import opero
from opero.policies.base import StrictModel

FILE = Path(__file__).with_name("public_surface.txt")


def signature(function: Any) -> str:
    text = re.sub(r"<(?:function|class) '?([\w.]+)'?[^>]*>| at 0x\w+", r"\1", str(inspect.signature(function)))
    return re.sub(r"\b(?:typing|collections\.abc|opero(?:\.[a-z_]+)+)\.", "", text.replace("'", ""))


def members(cls: type[Any]) -> list[str]:
    """Return the public methods, properties, slots and class variables of a class and its bases in opero."""
    lines = []
    if not issubclass(cls, StrictModel):
        annotations = vars(cls).get("__annotations__", {})
        lines += [f"    {name}: {what}" for name, what in annotations.items() if str(what).startswith("ClassVar")]
    for name in sorted({name for base in cls.__mro__ if base.__module__.startswith("opero") for name in vars(base)}):
        if name.startswith("_") and name not in ("__call__", "__init__", "__new__"):
            continue
        getattr(cls, name)  # a method that is made when it is first used takes its place
        found = inspect.getattr_static(cls, name)
        if issubclass(cls, StrictModel) and (name in cls.model_fields or name.startswith("model_")):
            continue
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if inspect.isfunction(function):
            lines.append(f"    {name}{signature(function)}")
        elif isinstance(found, property):
            lines.append(f"    {name}: property")
        elif inspect.ismemberdescriptor(found):
            lines.append(f"    {name}")
    return lines


@functools.cache
def written_in(cls: type[Any]) -> dict[str, str]:
    """Return the annotations in a class body of opero, as they are written."""
    if not cls.__module__.startswith("opero"):
        return {}
    [found] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(found, ast.ClassDef)
    fields = [each for each in found.body if isinstance(each, ast.AnnAssign)]
    return {ast.unparse(each.target): ast.unparse(each.annotation) for each in fields}


def described(name: str) -> list[str]:
    value = getattr(opero, name)
    if not callable(value):
        return [name]
    if get_origin(value):
        return [f"{name} = {value!r}"]
    if not inspect.isclass(value):
        return [f"{name}{signature(value)}"]
    lines = [f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"]
    if issubclass(value, StrictModel):
        for field, info in value.model_fields.items():
            default = "" if info.is_required() else f" = {info.get_default(call_default_factory=True)!r}"
            written = next(annotations[field] for base in value.__mro__ if field in (annotations := written_in(base)))
            lines.append(f"    {field}: {written}{default}")
    return lines + members(value)


def surface() -> str:
    return "\n".join(line for name in opero.__all__ for line in described(name)) + "\n"


def test_the_public_api_is_as_recorded() -> None:
    assert surface() == FILE.read_text(), (
        "the public API has changed; after an intended change run python tests/test_public_surface.py"
    )


if __name__ == "__main__":
    FILE.write_text(surface())
