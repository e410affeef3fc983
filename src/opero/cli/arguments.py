"""Converts the text of arguments and items to what the annotations of a function say."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Union, get_args, get_origin

from opero.cli.exits import UsageError
from opero.errors import described, message_of, readable
from opero.parallel.engine.batching import BatchRule
from opero.runtime.functions import signature_of

EMPTY = inspect.Parameter.empty


def parse_value(text: str) -> Any:
    """Parse a value of the command line as JSON; text that is not JSON is returned as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class Fit:
    """Converts values to one annotation: `str` leaves text as it is, other types are read from text or JSON.

    Args:
        annotation: the annotation, resolved; `inspect.Parameter.empty` for none.
    """

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        members = set(_members(annotation))
        self._takes_none = None in members or types.NoneType in members
        self._takes_text = str in members
        self._is_text = self._takes_text and not members - {str, None, types.NoneType}

    @cached_property
    def _adapter(self) -> Any:
        """What validates values; None if there is nothing to validate, or pydantic does not know the type."""
        from pydantic import PydanticUserError, TypeAdapter

        if self.annotation in (EMPTY, Any, object) or isinstance(self.annotation, str | typing.TypeVar):
            return None
        try:
            return TypeAdapter(self.annotation)
        except (PydanticUserError, NameError, TypeError):
            return None

    def of_text(self, text: str) -> Any:
        """Return what a text of the command line or of a field means.

        Raises:
            ValueError: it is no such value.
        """
        if self._is_text:
            return None if self._takes_none and text == "null" else text
        parsed = parse_value(text)
        if self._adapter is None:
            return parsed
        # "1.10" is a Decimal of two places, and "null" a text unless None is possible.
        return self._first([parsed, text] if self._takes_text else [text, parsed])

    def of_value(self, value: Any) -> Any:
        """Return what a value of a JSON document means.

        Raises:
            ValueError: it is no such value.
        """
        if isinstance(value, str):
            return value if self._adapter is None or self._takes_text else self.of_text(value)
        if self._is_text and not isinstance(value, dict | list | None):
            return json.dumps(value)
        return value if self._adapter is None else self._first([value])

    def _first(self, candidates: list[Any]) -> Any:
        from pydantic import ValidationError

        wrong = ""
        for each in candidates:
            try:
                return self._adapter.validate_python(each)
            except ValidationError as error:
                wrong = wrong or "; ".join(dict.fromkeys(str(one["msg"]) for one in error.errors(include_url=False)))
        raise ValueError(f"{described(candidates[0], 100)} is not {self}: {readable(wrong)}")

    def __str__(self) -> str:
        return inspect.formatannotation(self.annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for each in get_args(annotation) for member in _members(each))
    try:
        hash(annotation)
    except TypeError:
        return ()
    return (annotation,)


class Arguments:
    """Converts the arguments of one function.

    Args:
        function: a bound or plain function.
    """

    def __init__(self, function: Any) -> None:
        binding = getattr(function, "binding", None)
        self._plain: Callable[..., Any] = inspect.unwrap(function if binding is None else binding.function)
        self._signature = signature_of(function)
        hints = _hints(self._plain)
        parameters = {} if self._signature is None else self._signature.parameters
        self._fits = {name: Fit(hints.get(name, EMPTY)) for name in parameters}
        self._parameters = list(parameters.values())
        self._any_keyword = next((each.name for each in self._parameters if each.kind is each.VAR_KEYWORD), None)

    def positional(self, texts: list[str]) -> list[Any]:
        """Return the positional arguments that these texts mean.

        Raises:
            UsageError: a text does not fit its annotation.
        """
        found = []
        for index, text in enumerate(texts):
            parameter = self._parameter_at(index)
            found.append(parse_value(text) if parameter is None else self._fitted(parameter, text))
        return found

    def _parameter_at(self, index: int) -> str | None:
        for parameter in self._parameters[: index + 1]:
            if parameter.kind is parameter.VAR_POSITIONAL:
                return parameter.name
        return self._parameters[index].name if index < len(self._parameters) else None

    def keywords(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Return the keyword arguments that these texts mean.

        Raises:
            UsageError: a text does not fit its annotation.
        """
        return {
            name: parse_value(text) if (known := self._named(name)) is None else self._fitted(known, text, name)
            for name, text in texts.items()
        }

    def fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of an item as keyword arguments.

        Raises:
            ValueError: a field does not fit its annotation.
        """
        found = dict(values)
        for name, value in values.items():
            known = self._named(name)
            if known is not None:
                try:
                    found[name] = self._fits[known].of_value(value)
                except ValueError as error:
                    raise ValueError(f"field {name!r}: {message_of(error)}") from None
        return found

    def _named(self, name: str) -> str | None:
        return name if name in self._fits else self._any_keyword

    def _fitted(self, parameter: str, text: str, name: str = "") -> Any:
        try:
            return self._fits[parameter].of_text(text)
        except ValueError as error:
            raise UsageError(f"argument {name or parameter!r}: {message_of(error)}") from None


def item_fit(function: Any) -> Callable[[Any], Any]:
    """Return what converts an item to the annotation of the parameter that a map passes it for."""
    binding = function.binding
    position = 1 if binding.is_method else 0
    plain = inspect.unwrap(binding.function)
    parallel = binding.policy.parallel if hasattr(binding, "policy") else None
    rule = BatchRule(plain, position, None if parallel is None else parallel.batch)
    annotation = EMPTY if rule.parameter is None else _hints(plain).get(rule.parameter.name, EMPTY)
    whole, single = Fit(annotation), Fit(_of_elements(annotation))

    def fit(item: Any) -> Any:
        return (single if rule.applies(item) else whole).of_value(item)

    return fit


def _of_elements(annotation: Any) -> Any:
    """Return the annotation of an item of a batch."""
    for each in _members(annotation):
        if get_origin(each) is list:
            return get_args(each)[0]
    return EMPTY


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function. Those that cannot be resolved are left out."""
    target: Any = function if inspect.isroutine(function) else vars(type(function)).get("__call__", function)
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # noqa: BLE001  # a name that exists for type checkers only
        names = getattr(target, "__globals__", {})
        found: dict[str, Any] = {}
        for name, each in getattr(target, "__annotations__", {}).items():
            try:
                found[name] = eval(each, names) if isinstance(each, str) else each  # as get_type_hints does
            except Exception:  # noqa: BLE001
                continue
        return found
