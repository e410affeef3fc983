"""The sources of pydantic-settings: a layer for each file, secrets, a `.env` file and the environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from opero.config.sources import ConfigLayer


class LayerSource(PydanticBaseSettingsSource):
    """A source that returns one unmerged layer, so that each value keeps its source and what it shadows."""

    def __init__(self, settings_cls: type[BaseSettings], layer: ConfigLayer, enabled: bool | None = None) -> None:
        super().__init__(settings_cls)
        self.layer = layer
        self.enabled = enabled

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # values are not looked up by field: see __call__

    def __call__(self) -> dict[str, Any]:
        layers = {"layers": {self.layer.name: self.layer}}
        return layers if self.enabled is None else {**layers, "enabled": self.enabled}


class Settings(BaseSettings):
    """The layers of all sources.

    pydantic-settings collects the layers from the sources; composition.py merges them to profiles.

    Attributes:
        enabled: `OPERO_ENABLED`. Default true.
        layers: the contents of each file and each set of variables, lowest precedence first.
    """

    model_config = SettingsConfigDict(frozen=True)

    enabled: bool = True
    layers: dict[str, Any] = {}  # of `ConfigLayer`, for which pydantic would build a schema

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return a source for each layer, highest precedence first: environment, `.env`, secrets, then the files."""
        assert isinstance(init_settings, InitSettingsSource)
        return tuple(LayerSource(settings_cls, *each) for each in reversed(init_settings.init_kwargs["read"]))


def join(read: Sequence[tuple[ConfigLayer, bool | None]]) -> tuple[tuple[ConfigLayer, ...], bool]:
    """Return all layers, and whether opero is enabled.

    Args:
        read: the layers, lowest precedence first, each with what it says of `OPERO_ENABLED`.
    """
    # pydantic-settings passes only init arguments to settings_customise_sources.
    init: dict[str, Any] = {"read": read}
    settings = Settings(**init)
    return tuple(settings.layers.values()), settings.enabled
