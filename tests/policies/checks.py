"""How one field of a policy is checked with good values and bad ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from opero.policies.base import BasePolicy

Good = list[tuple[str, Any, Any]]
Bad = list[tuple[str, Any, str]]


def accepts(policy: type[BasePolicy], field: str, written: Any, held: Any, /, **others: Any) -> None:
    """The field holds the value, whether it is passed by keyword, in a mapping or to `replace`."""
    made = policy(**{**others, field: written})
    assert getattr(made, field) == held
    assert type(getattr(made, field)) is type(held)
    assert policy.model_validate({**others, field: written}) == made
    assert made.replace(**{field: written}) == made


def refuses(policy: type[BasePolicy], field: str, wrong: Any, told: str, /, **others: Any) -> None:
    """The error names the field and the problem, however the value is passed."""
    for make in (
        lambda: policy(**{**others, field: wrong}),
        lambda: policy.model_validate({**others, field: wrong}),
        lambda: policy(**others).replace(**{field: wrong}),
    ):
        if others == {} and make.__code__.co_names == ("replace",):
            continue
        with pytest.raises(ValueError, match=told) as caught:
            make()
        assert field in str(caught.value)


def covers(policy: type[BasePolicy], *tables: list[tuple[Any, ...]]) -> None:
    """Every field has an entry in every table."""
    for table in tables:
        assert {entry[0] for entry in table} == set(policy.model_fields) - {"enabled"}
