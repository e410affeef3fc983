"""A function under the policy that a command line asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opero.cli.exits import UsageError
from opero.errors import UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opero.registry.registry import Registry

PLACE = ("command line", 0)
"""Where the options of a function that nothing else binds are said."""

__all__ = ["Unpacked", "bound", "options_of", "parsed", "unpacked"]


def parsed(text: str) -> Any:
    """A value of the command line: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def pairs(texts: Iterable[str], option: str) -> dict[str, Any]:
    """What "name=value", given several times, says.

    Raises:
        UsageError: one has no "=", or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"{option} {text!r} is not of the form name=value")
        if name in found:
            raise UsageError(f"{option} gives {name!r} twice; give it once")
        found[name] = parsed(value)
    return found


def options_of(sets: Iterable[str] | None, **given: Any) -> dict[str, Any]:
    """Flat options: those of `--set`, and those that have an option of their own; None: not given.

    Raises:
        UsageError: an option is given twice.
    """
    options = {name: _listed(name, value) for name, value in pairs(sets or (), "--set").items()}
    for name, value in given.items():
        if value is not None:
            if name in options:
                raise UsageError(f"--set gives {name!r}, and so does --{name.replace('_', '-')}; give one of them")
            options[name] = value
    return options


def _listed(option: str, value: Any) -> Any:
    """What is written with commas, where the option takes a list: as variables are read."""
    from opero.config.fields import is_list
    from opero.policies.policy import FLAT_OPTIONS

    if isinstance(value, str) and "," in value and option in FLAT_OPTIONS and is_list(*FLAT_OPTIONS[option]):
        return [each.strip() for each in value.split(",")]
    return value


def bound(
    function: Any,
    registry: Registry,
    profile: str | None,
    options: Mapping[str, Any],
    usual: Mapping[str, Any] | None = None,
) -> Any:
    """The function under its policy.

    One that has a policy keeps it; the profile is laid over that key by key, and the options over both. What
    `functions:` says of one that has none holds, too.

    Args:
        function: bound or plain.
        registry: where the profile is.
        profile: its name, or None.
        options: flat options.
        usual: flat options that hold where nobody says anything else.

    Raises:
        UsageError: an option that does not exist, or has a wrong value.
        ConfigError: no such profile, or the policy does not fit the function.
    """
    from pydantic import ValidationError

    from opero.binding.disabled import plain
    from opero.binding.fit import check_arguments
    from opero.cli.mistakes import sentences
    from opero.policies.policy import Policy, merge, options_to_fields, whole_policies
    from opero.registry.default import bind_declared

    def put(fields: Mapping[str, Any]) -> None:
        policy = Policy.model_validate(fields)
        binding.swap(policy if registry.configuration.enabled else plain(policy))

    binding: Any = getattr(function, "binding", None)
    try:
        fields = options_to_fields(options)
        Policy.check_fields(fields)
        if binding is None:
            check_arguments(fields, function)
            function = bind_declared(
                function,
                Policy.model_validate(fields) if profile is None else None,
                profile=profile,
                below={},
                fields=fields,
                registry=registry,
                clock=None,
                mapped=False,
                place=PLACE,
                whole=whole_policies(options),
            )
            binding = function.binding
        elif profile is not None or fields:
            lower = binding.policy.fields()
            put(merge(lower if profile is None else merge(lower, registry[profile].fields()), fields))
        lower = binding.policy.fields()
        whole = merge(options_to_fields(usual or {}), lower)
        if whole != lower:
            put(whole)
    except UnknownOptionError as error:
        raise UsageError(str(error)) from error
    except ValidationError as error:
        raise UsageError("\n  ".join(["the options do not make a policy:", *sentences(error)])) from error
    return function


class Unpacked:
    """Calls a function with an item's fields as keyword arguments. It travels by the function's name.

    Args:
        target: "module:qualname".
    """

    def __init__(self, target: str) -> None:
        from opero.cli.loading import load_function

        self.target = target
        found = load_function(target)
        self.function = found.binding.function if hasattr(found, "binding") else found
        self.instance = (found.__self__,) if hasattr(found, "binding") and hasattr(found, "__self__") else ()

    def __call__(self, item: Any) -> Any:
        return self.function(*self.instance, **_fields(item))

    def __opero_key__(self) -> str:
        return self.target

    def __reduce__(self) -> Any:
        return type(self), (self.target,)

    def __repr__(self) -> str:
        return self.target


class _AsyncUnpacked(Unpacked):
    async def __call__(self, item: Any) -> Any:
        return await self.function(*self.instance, **_fields(item))


def _fields(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise TypeError(f"--unpack takes items that are objects, or rows of CSV, and this is {item!r:.60}")
    return item


def unpacked(target: str, function: Any) -> Unpacked:
    """What takes an item of fields in the function's place. It has the function's own policy."""
    from opero.runtime.functions import kind_of

    binding = getattr(function, "binding", None)
    kind = kind_of(function) if binding is None else binding.kind
    caller = (_AsyncUnpacked if kind == "async" else Unpacked)(target)
    return caller if binding is None else binding.policy.apply(caller)
