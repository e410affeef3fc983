"""The base of all policies evaluates the annotations of fields, wherever a class is made."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic
import pytest

from opero import ConfigError
from opero.policies.base import BasePolicy, ShadowPolicy, StrictModel


class Limits(StrictModel):
    lowest: Number = 1  # defined below
    highest: int | None = None
    words: ClassVar[dict[str, int]] = {}


Number = int


def test_annotations_are_values_and_what_is_defined_later_is_found() -> None:
    assert Limits.__annotations__ == {"lowest": "Number", "highest": int | None, "words": ClassVar[dict[str, int]]}
    assert BasePolicy.__annotations__["enabled"] is ShadowPolicy.__annotations__["shadow"]
    assert Limits(lowest=2).highest is None
    with pytest.raises(ConfigError, match="lowest"):
        Limits(lowest="many")  # type: ignore[arg-type]


def test_a_class_may_be_local() -> None:
    class Choice(str):
        pass

    class Local(StrictModel):
        choice: Choice = Choice("a")
        later: Later | None = None

    class Later(StrictModel):
        number: int

    Local.model_rebuild()
    assert Local(later={"number": 3}).later == Later(number=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choice"):
        Local(choice=5)  # type: ignore[arg-type]


def test_a_class_may_be_made_without_a_module() -> None:
    made: Any = pydantic.create_model("Made", __base__=StrictModel, number=(int, 3))
    assert made(number=4).number == 4
    namespace: dict[str, Any] = {"StrictModel": StrictModel, "__name__": "nowhere"}
    exec("from __future__ import annotations\nclass Made(StrictModel):\n    number: int = 3", namespace)
    assert namespace["Made"](number=5).number == 5
