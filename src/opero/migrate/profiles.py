"""Profiles as text: added to base.yaml, whose other lines stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from opero.config.location import BASE, SUFFIXES
from opero.errors import ConfigError, error_at
from opero.policies.policy import KINDS
from opero.policies.quantities import format_duration

if TYPE_CHECKING:
    from pathlib import Path

    from opero.migrate.reading import Translation

Profile = dict[str, Any]


class Files:
    """The policy files of a directory, which may not exist.

    Args:
        directory: the directory.

    Raises:
        ConfigError: a file is not valid YAML.
    """

    def __init__(self, directory: Path) -> None:
        paths = [each for suffix in SUFFIXES for each in sorted(directory.glob(f"*{suffix}"))]
        self.base = next((each for each in paths if each.stem == BASE), directory / f"{BASE}.yaml")
        texts = {each: _text(each) for each in paths}
        self.text = texts.get(self.base, "")
        self._data = {path: _mapping(text, str(path)) for path, text in texts.items()}

    @property
    def restricts_imports(self) -> bool:
        """Whether exceptions can be named only if `import_from` allows their modules."""
        return any("import_from" in data for data in self._data.values())

    def existing(self, name: str) -> Profile | None:
        """Return the profile of that name in base.yaml.

        Raises:
            ConfigError: the file of an environment has it.
        """
        for path, data in self._data.items():
            if path != self.base and name in (data.get("policies") or {}):
                raise ConfigError(
                    f"{path} has a profile {name!r}, which would change a new one; choose another by --name"
                )
        found = ((self._data.get(self.base) or {}).get("policies") or {}).get(name)
        return found if isinstance(found, dict) else None if found is None else {}

    def profile(self, translation: Translation) -> Profile:
        """Return the profile of a translation, independent of the `defaults:` of these files."""
        profile: Profile = {"retry": dict(translation.retry)}
        if translation.conditions is not None:
            profile["retry"]["retry_on"] = [*translation.conditions]
        profile["retry"]["retry_after"] = False
        if translation.total is not None:
            profile["timeout"] = {"total": format_duration(translation.total), "enforce": "none"}
        if not translation.responses:
            profile["failures"] = {"responses": False}
        for data in self._data.values():
            for kind, fields in (data.get("defaults") or {}).items():
                if kind not in profile:
                    profile[kind] = None
                elif isinstance(fields, dict) and kind in KINDS:
                    fields_of_model = KINDS[kind].model_fields
                    for name in fields.keys() & fields_of_model.keys() - profile[kind].keys():
                        profile[kind][name] = fields_of_model[name].get_default()
        return profile

    def with_profiles(self, profiles: Mapping[str, Profile]) -> str:
        """Return the text of base.yaml with more profiles.

        Raises:
            ConfigError: it is written in a way to which nothing can be added.
        """
        if not profiles:
            return self.text
        lines = self.text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\r\n" if "\r\n" in self.text else "\n"
        place, indent = self._place(lines)
        new = yaml_of(profiles, indent or "  ")
        if place is None:
            new = [*(["\n"] if lines else []), "policies:\n", *new]
            place = len(lines)
        elif lines[place - 1].strip() and indent:
            new = ["\n", *new]
        if "\r\n" in self.text:
            new = [each.replace("\n", "\r\n") for each in new]
        text = "".join([*lines[:place], *new, *lines[place:]])
        before = _mapping(self.text, str(self.base))
        expected = {**before, "policies": {**(before.get("policies") or {}), **profiles}}
        if _mapping(text, str(self.base)) != expected:
            raise self._refusal()
        return text

    def _refusal(self) -> ConfigError:
        return error_at(
            str(self.base), "`policies:` is not a block of lines, to which a profile can be added; add it yourself"
        )

    def _place(self, lines: list[str]) -> tuple[int | None, str]:
        """Return the number of lines before new profiles, and the indentation of profiles; None if there are none."""
        node = yaml.compose(self.text, yaml.SafeLoader)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value != "policies":
                continue
            if isinstance(value, yaml.ScalarNode) and not value.value:
                return key.end_mark.line + 1, ""
            if not isinstance(value, yaml.MappingNode) or value.flow_style or not value.value:
                raise self._refusal()
            column = value.value[0][0].start_mark.column
            # Behind the last line of a profile, and comments that are indented like its lines.
            place = last = value.value[-1][0].start_mark.line + 1
            for number in range(last, value.end_mark.line if value.end_mark.column == 0 else len(lines)):
                line = lines[number]
                if line.strip() and len(line) - len(line.lstrip()) >= column + (1 if line.lstrip()[0] == "#" else 0):
                    place = number + 1
            return place, " " * column
        return None, ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # with the line ends that it has
    except UnicodeDecodeError as error:
        raise error_at(str(path), "is not UTF-8") from error


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML; `opero check` shows where") from error
    return data if isinstance(data, dict) else {}


def yaml_of(profiles: Mapping[str, Profile], indent: str = "  ") -> list[str]:
    """Return the lines of profiles."""
    lines: list[str] = []
    for number, (name, profile) in enumerate(profiles.items()):
        lines += ["\n"] if number else []
        lines.append(f"{indent}{_flow(name)}:\n")
        for kind, fields in profile.items():
            if fields is None or len(fields) < 3:
                lines.append(f"{indent * 2}{kind}: {_flow(fields)}\n")
                continue
            lines.append(f"{indent * 2}{kind}:\n")
            lines += [f"{indent * 3}{field}: {_flow(value)}\n" for field, value in fields.items()]
    return lines


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
