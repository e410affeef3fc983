"""What commands load: the registry of an environment, and functions by name."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.cli.exits import UsageError
from opero.cli.terminal import print_warning
from opero.errors import nearest

if TYPE_CHECKING:
    from opero.config import Configuration
    from opero.registry.registry import Registry

__all__ = [
    "check_profile",
    "environments",
    "hide_warnings",
    "import_module_named",
    "load_configuration",
    "load_function",
    "show_warnings",
    "use_registry",
]


def environments(config: str | None) -> list[str]:
    """The environments that have a file of their own.

    Raises:
        ConfigError: the directory cannot be told, or there is none.
    """
    from opero.config.location import BASE, SUFFIXES, locate, named_directory
    from opero.config.report import Report
    from opero.config.variables import collect_variables, flatten
    from opero.errors import ConfigError

    variables = flatten(collect_variables(None, None, None, Report())[0])
    folder = Path(named_directory(config, variables).value).expanduser()
    if not folder.is_dir():
        locate(config, None, variables, Report())  # which says better what is wrong
        raise ConfigError(
            f"there is no directory {str(folder)!r} here; name it with --config, or write one: opero init"
        )
    return sorted({path.stem for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")} - {BASE})


class _Shown(logging.Handler):
    """Says opero's warnings on stderr, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            self.said.add(text)
            print_warning(text)


_shown: list[logging.Handler] = []


def show_warnings() -> None:
    """From now on say on stderr what opero warns of."""
    from opero.observe.logs import logger

    if not _shown:
        _shown.append(_Shown())
        logger.addHandler(_shown[0])


def hide_warnings() -> None:
    """No more."""
    if _shown:
        from opero.observe.logs import logger

        logger.removeHandler(_shown.pop())


def load_configuration(config: str | None, environment: str | None) -> Configuration:
    """The configuration of an environment: without all that a registry needs to run functions, it is loaded sooner.

    Raises:
        ConfigError: something is wrong with it.
    """
    from opero.config import load

    configuration = load(config, environment)
    for warning in configuration.warnings:
        print_warning(warning)
    _warn_if_off(configuration)
    return configuration


def _warn_if_off(configuration: Configuration) -> None:
    if not configuration.enabled:
        print_warning("OPERO_ENABLED is false: functions are called plainly, whatever their policies say")


def check_profile(configuration: Configuration, name: str) -> None:
    """
    Raises:
        PolicyNotFoundError: there is no profile of that name; it says what there is.
    """
    from opero.errors import PolicyNotFoundError

    if name in configuration.policies:
        return
    if configuration.directory is None:
        where = "no policy files were found: name their directory with --config, or write some with opero init"
        raise PolicyNotFoundError(f"there is no profile {name!r}, as {where}", name=name)
    known = ", ".join(sorted(configuration.policies)) or "none"
    hint = nearest(name, configuration.policies).partition("; known")[0]
    raise PolicyNotFoundError(
        f"no profile {name!r} among those of environment {configuration.environment!r} ({known}){hint}", name=name
    )


def use_registry(config: str | None, environment: str | None) -> Registry:
    """The registry of an environment, for functions that name a profile, too.

    Raises:
        ConfigError: something is wrong with the configuration.
    """
    from opero.registry.default import set_default_registry
    from opero.registry.registry import Registry

    show_warnings()
    registry = Registry.load(config, environment)
    _warn_if_off(registry.configuration)
    set_default_registry(registry)
    # Worker processes load their own for what else they call.
    if environment is not None:
        os.environ["OPERO_ENV"] = environment
    if config is not None:
        os.environ["OPERO_CONFIG"] = str(registry.configuration.directory)
    return registry


def import_module_named(name: str) -> Any:
    """A module, as the working directory and the installation have it.

    Raises:
        UsageError: there is none of that name, or it fails.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(
                f"there is no module {missing!r}, neither in {here} nor installed in {sys.prefix}"
            ) from error
        raise UsageError(f"the module {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        from opero.cli.mistakes import mistakes_in

        if mistakes := mistakes_in(error):
            told = "\n\n".join([f"the module {name!r} fails when it is imported:", *map(str, mistakes)])
            raise UsageError(told) from error
        raise UsageError(f"the module {name!r} fails when it is imported: {type(error).__name__}: {error}") from error


def load_function(target: str) -> Any:
    """The function that "module:qualname" names.

    Raises:
        UsageError: there is none, or it takes an instance first.
    """
    module_name, separator, qualname = target.partition(":")
    if not separator or not module_name or not qualname:
        cure = ""
        if "." in target and not separator:
            cure = "; did you mean {!r}?".format(":".join(target.rsplit(".", 1)))
        raise UsageError(f"{target!r} names no function: write module:function, such as app.users:get_user{cure}")
    found = import_module_named(module_name)
    path = module_name
    for part in qualname.split("."):
        if not hasattr(found, part):
            hint = nearest(part, [name for name in dir(found) if not name.startswith("_")])
            raise UsageError(f"{path} has no {part!r}{hint}")
        found = getattr(found, part)
        path = f"{path}.{part}"
    if not callable(found):
        raise UsageError(f"{target} is no function: it is {found!r:.60}")
    binding = getattr(found, "binding", None)
    takes_instance = binding.is_method if binding is not None else _is_method(found)
    if takes_instance and not hasattr(found, "__self__"):
        raise UsageError(
            f"{target} is a method and takes an instance first; name a function, or a method of an instance that the "
            "module holds: module:instance.method"
        )
    return found


def _is_method(function: Any) -> bool:
    from opero.runtime.functions import is_method

    return is_method(function)
