"""Binds a function to the policy that the command line asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opero.cli.arguments import Arguments, parse_value
from opero.cli.exits import UsageError
from opero.cli.loading import load_function
from opero.errors import UnknownOptionError, described
from opero.runtime.functions import kind_of

if TYPE_CHECKING:
    from opero.registry.registry import Registry

PLACE = ("command line", 0)
"""The source of options that the command line sets for a function without a decorator."""


def parse_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """Split the values of an option of the form "name=value" that can be given several times.

    Raises:
        UsageError: a value has no "=" or no name, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"{option} {described(text, 200)} is invalid: use name=value")
        if name in found:
            raise UsageError(f"{option} {described(name, 200)} is given twice")
        found[name] = value
    return found


def flat_options(sets: Iterable[str] | None, **given: Any) -> dict[str, Any]:
    """Return the options of a policy that the command line sets.

    Args:
        sets: the values of `--set`.
        given: the values of command-line options that are named like an option of a policy; None if not given.

    Raises:
        UsageError: an option is given twice.
    """
    pairs = parse_pairs(sets or (), "--set")
    options = {name: _split_list(name, parse_value(value)) for name, value in pairs.items()}
    for name, value in given.items():
        if value is not None:
            if name in options:
                raise UsageError(f"{name!r} is given by both --set and --{name.replace('_', '-')}")
            options[name] = value
    return options


def _split_list(option: str, value: Any) -> Any:
    """Split text at commas if the option takes a list, as for environment variables."""
    from opero.config.fields import is_list
    from opero.policies.policy import FLAT_OPTIONS

    if isinstance(value, str) and "," in value and option in FLAT_OPTIONS and is_list(*FLAT_OPTIONS[option]):
        return [each.strip() for each in value.split(",")]
    return value


def bind_function(
    function: Any,
    registry: Registry,
    profile: str | None,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Bind a function to a policy.

    If the function is bound already, the profile is merged over its policy, and the options over both. Otherwise its
    entry of `functions:` applies as well.

    Args:
        function: a bound or plain function.
        registry: the registry that contains the profile.
        profile: the profile's name, or None.
        options: flat options.
        defaults: flat options for what neither the function, the profile nor `options` set.

    Raises:
        UsageError: an option does not exist.
        ConfigError: an option's value is invalid, the profile does not exist, or the policy does not fit the function.
    """
    from opero.binding.disabled import plain
    from opero.binding.fit import check_arguments, check_own
    from opero.policies.policy import Policy, merge, names_of, options_to_fields, whole_policies
    from opero.policies.refusals import made
    from opero.registry.default import bind_declared

    def set_policy(fields: Mapping[str, Any]) -> None:
        policy = made(Policy, fields, names_of(options))
        binding.swap(policy if registry.configuration.enabled else plain(policy))

    binding: Any = getattr(function, "binding", None)
    try:
        fields = options_to_fields(options)
        Policy.check_fields(fields, names_of(options))
        if binding is None:
            check_arguments(fields, function)
            check_own(None, function, fields)
            function = bind_declared(
                function,
                made(Policy, fields, names_of(options)) if profile is None else None,
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
            set_policy(merge(lower if profile is None else merge(lower, registry[profile].fields()), fields))
        lower = binding.policy.fields()
        whole = merge(options_to_fields(defaults or {}), lower)
        if whole != lower:
            set_policy(whole)
    except UnknownOptionError as error:
        raise UsageError(str(error)) from error
    return function


class Unpacked:
    """Calls a function with the fields of an item as keyword arguments. It is pickled by the function's name.

    Args:
        target: the function's name, "module:qualname".
    """

    def __init__(self, target: str) -> None:
        self.target = target
        found = load_function(target)
        self.function = found.binding.function if hasattr(found, "binding") else found
        self.instance = (found.__self__,) if hasattr(found, "binding") and hasattr(found, "__self__") else ()
        self._arguments = Arguments(found)

    def __call__(self, item: Any) -> Any:
        return self.function(*self.instance, **self._fields(item))

    def checked(self, item: Any) -> Any:
        """Return an item whose fields can be arguments, as it is.

        Raises:
            ValueError: they cannot.
        """
        self._fields(item)
        return item

    def _fields(self, item: Any) -> dict[str, Any]:
        if not isinstance(item, dict):
            raise ValueError(f"--unpack requires items that are JSON objects or CSV rows, and this is {item!r:.60}")
        return self._arguments.fields(item)

    def __opero_key__(self) -> str:
        return self.target

    def __reduce__(self) -> Any:
        return type(self), (self.target,)

    def __repr__(self) -> str:
        return self.target


class _AsyncUnpacked(Unpacked):
    async def __call__(self, item: Any) -> Any:
        return await self.function(*self.instance, **self._fields(item))


def unpacked(target: str, function: Any) -> Unpacked:
    """Return a function that takes an item and passes its fields to `function`, with the same policy."""
    binding = getattr(function, "binding", None)
    kind = kind_of(function) if binding is None else binding.kind
    caller = (_AsyncUnpacked if kind == "async" else Unpacked)(target)
    return caller if binding is None else binding.policy.apply(caller)
