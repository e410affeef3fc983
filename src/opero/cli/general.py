"""Checks the general variables, such as `OPERO_SERVE` and `OPERO_LOG_LEVEL`, which are read only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from opero.errors import ConfigError, error_at, message_of, shortened
from opero.integrations import serving, switch
from opero.integrations.web.security import HOSTS, TOKEN, host_of
from opero.observe.logs import complaints
from opero.runtime.environment_files import flag
from opero.runtime.named_secrets import find_secret, resolved

PACKAGES = {"prometheus": "prometheus_client", "otel": "opentelemetry"}
"""The package that each kind of metrics needs."""


def check_general_variables() -> Iterator[ConfigError]:
    """Yield what is invalid, each with the name of its variable.

    If variables in files cannot be read at all, there is nothing to yield: loading the configuration reports it.
    """
    try:
        find_secret(TOKEN)
    except ConfigError:
        return
    except ValueError:  # this one alone
        pass
    checks: tuple[Callable[[], object], ...] = (_metrics, serving.read, _token, _hosts, _receipts)
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield error
    for name, complaint in complaints():
        yield error_at(name, complaint)


def _metrics() -> None:
    for name in switch.wanted():
        if find_spec(PACKAGES[name]) is None:
            raise error_at(switch.VARIABLE, f"{name} needs the extra {name}: pip install 'opero[{name}]'; or remove it")


def _receipts() -> None:
    flag("OPERO_RECEIPTS", default=False)


def _token() -> None:
    try:
        resolved(_value(TOKEN), find_secret)
    except (ConfigError, ValueError) as error:
        raise error_at(TOKEN, message_of(error)) from None


def _hosts() -> None:
    for name in map(str.strip, _value(HOSTS).split(",")):
        if name and (not host_of(name) or any(each in name for each in "/?#@ *")):
            text = (
                f"{shortened(name, 60)!r} is not the name of a host: use names such as example.com, with commas between"
            )
            raise error_at(HOSTS, text)


def _value(name: str) -> str:
    try:
        return find_secret(name) or ""
    except ValueError as error:
        raise error_at(name, message_of(error)) from None
