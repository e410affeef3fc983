"""What to use instead, when something fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import SerializerFunctionWrapHandler, field_serializer, model_validator

from opero.policies.base import BasePolicy
from opero.policies.types import UNSET, Function

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FallbackPolicy"]


class FallbackPolicy(BasePolicy):
    """Use another argument value, another function, or a fixed answer, when an attempt or the whole call fails.

    Attributes:
        arg: the name of a parameter that may hold alternatives, such as several API keys. Each is tried in turn, at
            once. The function receives what its annotation says: one value where that is no list or tuple; else, or
            where there is no annotation, the list with the value being tried first, so that `api_key[0]` is current.
        default: what the call returns when everything else has failed or run out of time; a copy each time. None is
            a value.
        function: called with the same arguments instead of returning `default`; async where the bound function is.
    """

    kind: ClassVar[str] = "fallback"

    arg: str | None = None
    default: Any = UNSET
    function: Function | None = None

    if TYPE_CHECKING:  # what code may write is wider than what the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            arg: str | None = None,
            default: Any = UNSET,
            function: Callable[..., Any] | str | None = None,
        ) -> None: ...

    @property
    def has_result(self) -> bool:
        """Whether a call whose attempts all failed still has an answer."""
        return self.default is not UNSET or self.function is not None

    @field_serializer("default", mode="wrap")
    def _write_default(self, default: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return None if default is UNSET else handler(default)  # it is left out of what is written

    @model_validator(mode="after")
    def _check_one_is_set(self) -> Self:
        if self.arg is None and not self.has_result:
            raise ValueError("no fallback is set; set arg, default or function")
        if self.default is not UNSET and self.function is not None:
            raise ValueError("default and function are mutually exclusive; remove one of them")
        return self
