"""Variables that start with OPERO_ and name no option: of the platform, of others, misspelt ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.config.report import Report
from opero.config.settings import load
from opero.config.sources import Source
from opero.config.unknown_variables import UnknownVariables, is_injected
from opero.registry.checks import check

if TYPE_CHECKING:
    from pathlib import Path

    from config.conftest import Policies

BASE = "policies: {api: {retry: 1}, db: {retry: 2}}"
FOREIGN = [
    "OPERO_VERSION",
    "OPERO_IMAGE",
    "OPERO_HOME",
    "OPERO_PORT",
    "OPERO_URL",
    "OPERO_NAME",
    "OPERO_DEBUG",
    "OPERO_DEBUG_MODE",
    "OPERO_FEATURE_ENABLED",
    "OPERO_DATABASE_URL",
    "OPERO_API_KEY",
    "OPERO_API_URL",
    "OPERO_API_IMAGE",
    "OPERO_SOMETHING",
    "OPERO_X",
    "OPERO_",
    "OPERO_A__B",
]


def service(name: str, address: str, port: int, port_name: str) -> dict[str, str]:
    """The variables that Kubernetes sets in containers for a service."""
    prefix = name.upper().replace("-", "_")
    at = f"{prefix}_PORT_{port}_TCP"
    return {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_SERVICE_PORT_{port_name.upper().replace('-', '_')}": str(port),
        f"{prefix}_PORT": f"tcp://{address}:{port}",
        at: f"tcp://{address}:{port}",
        f"{at}_PROTO": "tcp",
        f"{at}_PORT": str(port),
        f"{at}_ADDR": address,
    }


@pytest.mark.parametrize("name", ["opero", "opero-api", "opero-api-cache", "opero-retries"])
def test_what_kubernetes_sets_for_a_service_called_opero_is_skipped(policies: Policies, name: str) -> None:
    policies.write(base=BASE)
    found = policies.load(**service(name, "10.0.0.7", 8080, "http-cache"))
    assert found.warnings == ()
    check(found, [])


@given(
    st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    st.integers(1, 65535),
    st.from_regex(r"[a-z]([-a-z0-9]{0,12}[a-z0-9])?", fullmatch=True),
)
def test_whatever_the_service_is_called(name: str, port: int, port_name: str) -> None:
    for each, text in service(f"opero-{name}", "10.0.0.7", port, port_name).items():
        assert is_injected(each, text)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_variable_near_no_option_is_a_warning_and_a_problem_of_a_check(policies: Policies, name: str) -> None:
    policies.write(base=BASE)
    found = policies.load(**{name: "hunter2"})
    (warning,) = found.warnings
    assert warning.startswith(f"{name}: ")
    assert "so it is ignored; known profiles: api, db" in warning
    assert "hunter2" not in warning
    with pytest.raises(ValueError, match=f"^{name}: "):
        check(found, [])


@pytest.mark.parametrize("name", FOREIGN)
def test_it_is_a_warning_where_there_are_no_profiles_too(policies: Policies, name: str) -> None:
    assert len(policies_less(policies, name)) == 1


def policies_less(policies: Policies, name: str) -> tuple[str, ...]:
    return load(environ={name: "1"}).warnings


def test_a_line_of_an_env_file_is_told_with_its_place(policies: Policies, tmp_path: Path) -> None:
    policies.write(base=BASE)
    (tmp_path / "my.env").write_text("A=1\nOPERO_VERSION=1.2\n")
    (warning,) = load(environ={}, env_file="my.env").warnings
    assert warning.startswith("my.env:2:1 (OPERO_VERSION): names no option")


def test_many_variables_of_others_are_told_in_bounded_time_and_number(policies: Policies) -> None:
    policies.write(base=BASE)
    assert len(policies.load(**{f"OPERO_WORD{i}X": "1" for i in range(1000)}).warnings) == 100


@given(st.data())
def test_an_option_with_one_wrong_letter_is_an_error_that_names_it(data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(["RETRIES", "CIRCUIT_BREAKER_OPEN_FOR", "RATE_LIMIT", "CACHE_TTL", "TIMEOUT"]))
    at = data.draw(st.integers(0, len(option) - 1))
    wrong = option[:at] + "Q" + option[at + 1 :]
    report = Report()
    UnknownVariables(["api"], []).judge(f"OPERO_API_{wrong}", "1", Source("x"), report)
    assert f"OPERO_API_{option}?" in report.lines[0]
