"""Functions that are generated with the parameters of another function, so that a call packs no arguments.

One body is compiled for each shape of parameters, with placeholders for their names, and kept. A generated function is
that code under the real names, which costs a hundredth of compiling.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from inspect import CO_VARARGS, CO_VARKEYWORDS, Parameter
from types import CellType, CodeType, FunctionType
from typing import Any

from opero.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of a function without their names: how many there are of each kind.

    Attributes:
        positional_only: parameters that cannot be passed by name.
        positional: parameters that can be passed either way.
        keyword_only: parameters that can only be passed by name.
        args: whether there is a `*args`.
        kwargs: whether there is a `**kwargs`.
    """

    positional_only: int = 0
    positional: int = 0
    keyword_only: int = 0
    args: bool = False
    kwargs: bool = False


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function.

    Attributes:
        shape: how many there are of each kind.
        names: their names, in the order of a code object: `*args` and `**kwargs` are the last.
        defaults: the defaults of the last of those that can be passed by position.
        keyword_defaults: the defaults of keyword-only parameters.
    """

    shape: Shape
    names: tuple[str, ...]
    defaults: tuple[Any, ...] | None = None
    keyword_defaults: dict[str, Any] | None = None

    @classmethod
    def of(cls, function: FunctionType) -> Parameters:
        """Return the parameters that a function really has, whatever its signature says."""
        code = function.__code__
        args, kwargs = bool(code.co_flags & CO_VARARGS), bool(code.co_flags & CO_VARKEYWORDS)
        named = code.co_argcount + code.co_kwonlyargcount
        shape = Shape(
            code.co_posonlyargcount,
            code.co_argcount - code.co_posonlyargcount,
            code.co_kwonlyargcount,
            args,
            kwargs,
        )
        return cls(shape, code.co_varnames[: named + args + kwargs], function.__defaults__, function.__kwdefaults__)

    @classmethod
    def of_signature(cls, parameters: Mapping[str, Parameter]) -> Parameters:
        """Return the parameters that a signature describes."""
        by_kind: dict[Any, list[Parameter]] = {}
        for each in parameters.values():
            by_kind.setdefault(each.kind, []).append(each)
        only, either = by_kind.get(Parameter.POSITIONAL_ONLY, []), by_kind.get(Parameter.POSITIONAL_OR_KEYWORD, [])
        keyword_only = by_kind.get(Parameter.KEYWORD_ONLY, [])
        args, kwargs = by_kind.get(Parameter.VAR_POSITIONAL, []), by_kind.get(Parameter.VAR_KEYWORD, [])
        return cls(
            Shape(len(only), len(either), len(keyword_only), bool(args), bool(kwargs)),
            tuple(each.name for each in (*only, *either, *keyword_only, *args, *kwargs)),
            tuple(each.default for each in (*only, *either) if each.default is not Parameter.empty) or None,
            {each.name: each.default for each in keyword_only if each.default is not Parameter.empty} or None,
        )


ANY = Parameters(Shape(args=True, kwargs=True), ("args", "kwargs"))
"""The parameters of a function that takes whatever it is called with."""


def generate(
    template: str, parameters: Parameters, values: Mapping[str, Any], namespace: dict[str, Any], **parts: str
) -> FunctionType:
    """Generate a function.

    Args:
        template, parameters, parts: as for `code`.
        values: the values of the names that differ from function to function.
        namespace: the global names.
    """
    made = code(template, parameters, tuple(values), **parts)
    cells = tuple([CellType(values[name]) for name in made.co_freevars])
    function = FunctionType(made, namespace, made.co_name, parameters.defaults, cells)
    function.__kwdefaults__ = parameters.keyword_defaults
    return function


def code(template: str, parameters: Parameters, outer: tuple[str, ...], /, **parts: str) -> CodeType:
    """Return the code of a function with these parameters, which have no defaults in it.

    Args:
        template: the source of `def generated({parameters}):`, or of the `async def`. `{call}` stands for the arguments
            as a call passes them on, `{args}` and `{kwargs}` for a tuple and a dictionary of them, and `{0}`, `{1}` …
            for the parameters, in the order of `parameters.names`. Its own local names begin with an underscore.
        parameters: what it takes.
        outer: the names in it whose values differ from function to function.
        parts: further parts of the template, which may refer to parameters as well.
    """
    return _renamed(_compiled(template, parameters.shape, outer, tuple(parts.items())), parameters.names)


def placeholder(position: int) -> str:
    """Return what the parameter at a position is called in compiled code."""
    return f"_opero_{position}"


def _renamed(code: CodeType, names: tuple[str, ...]) -> CodeType:
    """Return the code with names instead of placeholders."""
    real = {placeholder(position): name for position, name in enumerate(names)}

    def renamed(constant: Any) -> Any:
        if type(constant) is tuple:
            return tuple([renamed(each) for each in constant])
        return real.get(constant, constant) if type(constant) is str else constant

    constants = tuple([renamed(each) for each in code.co_consts])
    return code.replace(co_varnames=names + code.co_varnames[len(names) :], co_consts=constants)


@functools.cache
def _compiled(template: str, shape: Shape, outer: tuple[str, ...], parts: tuple[tuple[str, str], ...]) -> CodeType:
    names = [placeholder(position) for position in range(_count(shape))]
    texts = _texts(shape, names)
    further = {name: part.format(*names, **texts) for name, part in parts}
    body = template.format(*names, **texts, **further).replace("\n", "\n    ")
    space: dict[str, Any] = {}
    exec(compile(f"def outer({', '.join(outer)}):\n    {body}\n    return generated", "<opero>", "exec"), space)
    code: CodeType = space["outer"](*outer).__code__
    return code


def _count(shape: Shape) -> int:
    return shape.positional_only + shape.positional + shape.keyword_only + shape.args + shape.kwargs


def _texts(shape: Shape, names: list[str]) -> dict[str, str]:
    """Return the texts of the parameters, of the arguments of a call, and of a tuple and a dictionary of these."""
    positional = shape.positional_only + shape.positional
    before = names[:positional]
    keywords = names[positional : positional + shape.keyword_only]
    args = [f"*{names[len(before) + len(keywords)]}"] if shape.args else []
    kwargs = [f"**{names[-1]}"] if shape.kwargs else []
    slash = ["/"] if shape.positional_only else []
    star = args or (["*"] if keywords else [])
    passed = [*before, *args]
    pairs = [*(f"{name!r}: {name}" for name in keywords), *kwargs]
    return {
        "parameters": ", ".join(
            [*names[: shape.positional_only], *slash, *before[shape.positional_only :], *star, *keywords, *kwargs]
        ),
        "call": ", ".join([*passed, *(f"{name}={name}" for name in keywords), *kwargs]),
        # What is a tuple or a dictionary already is not copied.
        "args": args[0][1:] if args and not before else f"({''.join(f'{each}, ' for each in passed)})",
        "kwargs": kwargs[0][2:] if kwargs and not keywords else f"{{{', '.join(pairs)}}}",
    }
