"""The fallback policy: what to use instead when an attempt or a call fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import SerializerFunctionWrapHandler, field_serializer, model_validator

from opero.policies.base import BasePolicy
from opero.policies.types import UNSET, Function

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FallbackPolicy"]


class FallbackPolicy(BasePolicy):
    """Use another argument value, another function, or a fixed result when an attempt or the whole call fails.

    Attributes:
        arg: the name of a parameter that may hold alternatives, such as several API keys. They are tried in order,
            without delay. If the parameter's annotation is not a list or tuple, the function receives one value;
            otherwise, or without an annotation, it receives the list with the current value first: `api_key[0]`.
        default: what the call returns when everything else has failed or timed out; a copy each time. None is a
            value.
        function: called with the same arguments, instead of `default`; may be async if the bound function is.
    """

    kind: ClassVar[str] = "fallback"

    arg: str | None = None
    default: Any = UNSET
    function: Function | None = None

    if TYPE_CHECKING:  # code may pass more types than the fields hold

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
        """Whether a call whose attempts have all failed still returns a result."""
        return self.default is not UNSET or self.function is not None

    @field_serializer("default", mode="wrap")
    def _write_default(self, default: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return None if default is UNSET else handler(default)  # the serializer of the model leaves it out

    @model_validator(mode="after")
    def _check_one_is_set(self) -> Self:
        if self.arg is None and not self.has_result:
            raise ValueError("no fallback is set; set arg, default or function")
        if self.default is not UNSET and self.function is not None:
            raise ValueError("default and function are mutually exclusive; remove one of them")
        return self
