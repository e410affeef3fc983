"""Loads configurations, registries, modules and functions for commands."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.cli.exits import UsageError
from opero.cli.terminal import print_warning
from opero.errors import ConfigError, PolicyNotFoundError, describe, message_of, nearest
from opero.observe.logs import logger
from opero.runtime.functions import is_method

if TYPE_CHECKING:
    from opero.config.configuration import Configuration
    from opero.registry.registry import Registry


class NoDirectoryError(ConfigError):
    """There is no directory of policy files."""


@contextmanager
def importing_from_here() -> Iterator[None]:
    """Let modules be imported from the working directory, as `python -m` does."""
    before = [*sys.path]
    with suppress(OSError):  # it has been deleted
        import_from_here()
    try:
        yield
    finally:
        for added in {*sys.path} - {*before}:
            sys.path.remove(added)


def import_from_here() -> None:
    """Let modules be imported from the working directory from now on."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def environments(config: str | None) -> list[str]:
    """Return the environments that have a file of their own.

    Raises:
        ConfigError: the directory of the policy files does not exist, or cannot be determined.
    """
    from opero.config.location import BASE, SUFFIXES

    return sorted({path.stem for suffix in SUFFIXES for path in policy_directory(config).glob(f"*{suffix}")} - {BASE})


def policy_directory(config: str | None) -> Path:
    """Return the directory of the policy files.

    Raises:
        NoDirectoryError: it does not exist.
        ConfigError: it cannot be determined.
    """
    from opero.config.location import locate, named_directory
    from opero.config.report import Report
    from opero.config.variables import collect_variables, flatten

    variables = flatten(collect_variables(None, None, None, Report())[0])
    folder = Path(os.path.expanduser(named_directory(config, variables).value))
    if not os.path.isdir(folder):
        try:
            locate(config, None, variables, Report())  # if it is named, this raises a more specific error
        except ConfigError as error:
            raise NoDirectoryError.of(error.problems) from error
        raise NoDirectoryError(f"directory {str(folder)!r} does not exist: set --config, or create it with opero init")
    return folder


MOST_NAMES = 4
"""The most names that a warning lists."""


class _WarningPrinter(logging.Handler):
    """Prints opero's warnings on stderr, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(record.getMessage())

    def tell(self, text: str) -> None:
        if text not in self.printed:
            self.printed.add(text)
            print_warning(text)


_printer = _WarningPrinter()


def show_warnings() -> None:
    """Print the warnings that opero logs on stderr, until `hide_warnings` is called."""
    logger.addHandler(_printer)


def hide_warnings() -> None:
    """Stop printing warnings."""
    logger.removeHandler(_printer)
    _printer.printed.clear()


def load_configuration(config: str | None, environment: str | None) -> Configuration:
    """Load the configuration of an environment to show it. Names that cannot be imported here are accepted.

    Raises:
        ConfigError: the configuration is invalid.
    """
    from opero.config.settings import load
    from opero.policies.names import keeping_names

    with keeping_names() as missing:
        configuration = load(config, environment)
    for text in texts_of(missing):
        _printer.tell(f"{text}; names are shown as they are written")
    for warning in configuration.warnings:
        _printer.tell(warning)
    _warn_if_off(configuration)
    return configuration


def texts_of(missing: Mapping[str, tuple[object, str]]) -> list[str]:
    """Return a text for each reason why names cannot be imported."""
    by_reason: dict[str, list[str]] = {}
    for name, (_, why) in missing.items():
        by_reason.setdefault(why.partition(" cannot be imported: ")[2], []).append(name)
    texts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        texts.append(f"cannot import {', '.join(names[:MOST_NAMES])}{more} here ({why})")
    return texts


def _warn_if_off(configuration: Configuration) -> None:
    if not configuration.enabled:
        print_warning("OPERO_ENABLED is false: functions are called without their policies")


def check_profile(configuration: Configuration, name: str) -> None:
    """Check that a profile exists.

    Raises:
        PolicyNotFoundError: it does not exist; the message lists the profiles that do.
    """
    if name in configuration.policies:
        return
    if configuration.directory is None:
        reason = "no policy files were found: set their directory with --config, or create some with opero init"
        raise PolicyNotFoundError(f"no profile {name!r}: {reason}", name=name)
    known = ", ".join(sorted(configuration.policies)) or "none"
    hint = nearest(name, configuration.policies).partition("; known")[0]
    raise PolicyNotFoundError(
        f"no profile {name!r} in environment {configuration.environment!r} (profiles: {known}){hint}", name=name
    )


def use_registry(config: str | None, environment: str | None) -> Registry:
    """Load the registry of an environment, and make it the default registry.

    Raises:
        ConfigError: the configuration is invalid.
    """
    from opero.registry.default import set_default_registry
    from opero.registry.registry import Registry

    show_warnings()
    registry = Registry.load(config, environment)
    _warn_if_off(registry.configuration)
    set_default_registry(registry)
    # Worker processes load a registry of their own from these variables.
    if environment is not None:
        os.environ["OPERO_ENV"] = environment
    if config is not None:
        os.environ["OPERO_CONFIG"] = str(registry.configuration.directory)
    return registry


def import_by_name(name: str) -> Any:
    """Import a module from the working directory or the installation.

    Raises:
        UsageError: the module does not exist, or its import fails.
    """
    import_from_here()
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(f"no module {missing!r} in {os.getcwd()} or installed in {sys.prefix}") from error
        raise UsageError(f"cannot import module {name!r}: {message_of(error)}") from error
    except (Exception, SystemExit) as error:
        from opero.cli.import_errors import problems_in

        if problems := problems_in(error):
            text = "\n\n".join([f"cannot import module {name!r}:", *map(str, problems)])
            raise UsageError(text) from error
        raise UsageError(f"cannot import module {name!r}: {describe(error)}") from error


def load_function(target: str) -> Any:
    """Return the function with the name "module:qualname".

    Raises:
        UsageError: it does not exist, or is a method without an instance.
    """
    module_name, separator, qualname = target.partition(":")
    if not separator or not module_name or not qualname:
        hint = ""
        if "." in target and not separator:
            hint = "; did you mean {!r}?".format(":".join(target.rsplit(".", 1)))
        raise UsageError(f"{target!r} is invalid: use module:function, such as app.users:get_user{hint}")
    found = import_by_name(module_name)
    path = module_name
    for part in qualname.split("."):
        if not hasattr(found, part):
            hint = nearest(part, [name for name in dir(found) if not name.startswith("_")])
            raise UsageError(f"{path} has no attribute {part!r}{hint}")
        found = getattr(found, part)
        path = f"{path}.{part}"
    if not callable(found):
        raise UsageError(f"{target} is not a function: it is {found!r:.60}")
    binding = getattr(found, "binding", None)
    takes_instance = is_method(found) if binding is None else binding.is_method
    if takes_instance and not hasattr(found, "__self__"):
        raise UsageError(
            f"{target} is a method and requires an instance: use a function, or a method of an instance in the module "
            "(module:instance.method)"
        )
    return found
