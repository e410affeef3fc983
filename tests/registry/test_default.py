"""The default registry: functions that name no profile, and configuration that does not concern them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opero import opero
from opero.errors import ConfigError
from opero.registry import default
from opero.registry.default import set_default_registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("policies").mkdir()
    Path("policies/base.yaml").write_text("policies: {api: {retry: 1}}")
    monkeypatch.setattr(default, "_told", set())
    set_default_registry(None)
    yield
    set_default_registry(None)


INVALID = {
    "a misspelt variable": {"OPERO_API_RETRIS": "1"},
    "an environment without a file": {"OPERO_ENV": "prodution"},
    "a directory that does not exist": {"OPERO_CONFIG": "nowhere"},
    "a place that cannot be served at": {"OPERO_SERVE": "nowhere"},
    "unknown metrics": {"OPERO_METRICS": "nonsense"},
    "no truth": {"OPERO_WATCH": "perhaps"},
    "a file that does not exist": {"OPERO_ENV_FILE": "nowhere"},
}
FILES = {
    "a misspelt option": ("policies/base.yaml", "policies: {api: {retrie: 1}}"),
    "no YAML": ("policies/base.yaml", "policies: ["),
    "an entry of another function": (
        "policies/base.yaml",
        "functions: {'other:f': {retrie: 1}, 'other.*': {retry: 1}}",
    ),
    "no TOML": ("pyproject.toml", "[tool.opero"),
}


def check_runs_without_configuration(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    @opero(retries=1, min_delay=0)
    def get() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return "got"

    @opero
    def other() -> str:
        return "other"

    @opero(policy="api")
    def named() -> str:
        return "never"

    with caplog.at_level(logging.WARNING, "opero"):
        assert (get(), other(), get()) == ("got", "other", "got")
    told = [each for each in caplog.messages if each.startswith("configuration: invalid, so functions that name no")]
    assert len(told) == 1
    with pytest.raises(ConfigError):
        named()


@pytest.mark.parametrize("environ", INVALID.values(), ids=INVALID)
def test_a_function_without_a_profile_runs_on_its_own_options_where_variables_are_invalid(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path("policies/production.yaml").write_text("policies: {}")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    check_runs_without_configuration(caplog)


@pytest.mark.parametrize(("path", "text"), FILES.values(), ids=FILES)
def test_and_where_files_are_invalid(path: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(path).write_text(text)
    check_runs_without_configuration(caplog)


@pytest.mark.parametrize("entry", [f"{__name__}:*", f"{__name__}:test_*", "*"])
def test_an_invalid_configuration_with_an_entry_for_it_is_an_error(entry: str) -> None:
    Path("policies/base.yaml").write_text(f"functions: {{'{entry}': {{retrie: 1}}}}")

    @opero
    def get() -> str:
        return "never"

    with pytest.raises(ConfigError, match="unknown key 'retrie'"):
        get()


def test_it_asks_the_registry_once_the_configuration_is_valid() -> None:
    Path("policies/base.yaml").write_text("functions: {'other:f': {retrie: 1}}")

    @opero
    def get() -> str:
        return "got"

    assert get() == "got"
    Path("policies/base.yaml").write_text(f"functions: {{'{__name__}:*': {{retry: 7}}}}")
    assert default.get_default_registry() is not None
    assert get() == "got"
    assert get.policy.retry is not None
    assert get.policy.retry.retries == 7


@pytest.mark.parametrize("variable", ["OPERO_PORT", "OPERO_VERSION"])
def test_variables_of_others_stop_no_function(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "tcp://10.0.0.7:80")

    @opero(policy="api")
    def get() -> str:
        return "got"

    assert get() == "got"
