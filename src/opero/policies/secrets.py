"""The type of fields that hold a secret, such as a key or a URL with a password: no message shows their values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import SecretStr, ValidationError, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.policies.quantities import HIDDEN


def hidden_error(kind: str, text: str, context: dict[str, Any] | None = None) -> ValidationError:
    """Make an error that does not show the input, as pydantic's own would."""
    wrong = InitErrorDetails(type=PydanticCustomError(kind, text, context), input=HIDDEN)
    return ValidationError.from_exception_data(kind, [wrong])


def _secret(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, str | SecretStr):
        kind = type(value).__name__
        raise hidden_error("secret", "a secret must be text, not {kind}; quote it", {"kind": kind})
    held = handler(value)
    if not held.get_secret_value():
        raise hidden_error("secret", "the value is empty; set it, or remove it")
    return held


Secret = Annotated[
    SecretStr,
    WrapValidator(_secret),
    WithJsonSchema({"type": "string", "minLength": 1, "format": "password", "writeOnly": True}),
]
