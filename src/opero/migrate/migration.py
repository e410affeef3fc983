"""Plans what is replaced in files and directories, and writes it all or nothing."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import field
from functools import partial
from pathlib import Path

import libcst as cst

from opero.config.location import show_path
from opero.dataclass import dataclass
from opero.errors import ConfigError
from opero.migrate.libraries import TRANSLATORS
from opero.migrate.module import Found, Module
from opero.migrate.profiles import Files, Profile, yaml_of

SKIPPED = ("__pycache__", "node_modules", "site-packages")


@dataclass(frozen=True)
class Use:
    """A use of a library in a file, and the profile that replaces it; "" if it is left alone."""

    file: Path
    found: Found
    profile: str = ""


@dataclass
class Migration:
    """What would change.

    Attributes:
        base: the policy file.
        replaced: what is replaced.
        left: what is left alone.
        unreadable: file → why it cannot be parsed.
        profiles: the new profiles.
        texts: file → its text before and after, for each that changes.
    """

    base: Path
    replaced: list[Use] = field(default_factory=list)
    left: list[Use] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    texts: dict[Path, tuple[bytes, bytes]] = field(default_factory=dict)

    def yaml(self) -> str:
        """Return the new profiles as YAML."""
        return "".join(["policies:\n", *yaml_of(self.profiles)]) if self.profiles else ""

    def diff(self) -> str:
        """Return the unified diff of all files but the policy file."""
        lines: list[str] = []
        for path, (before, after) in self.texts.items():
            if path == self.base:
                continue
            name = show_path(path.absolute())
            old, new = (each.decode("utf-8", "replace").splitlines(keepends=True) for each in (before, after))
            for line in difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"):
                lines += [line] if line.endswith("\n") else [line, "\n\\ No newline at end of file\n"]
        return "".join(lines)

    def write(self) -> None:
        """Write all files, or leave all as they are if one of them cannot be written.

        Raises:
            OSError: one of them cannot be written.
        """
        prepared: dict[Path, str] = {}
        done: list[Path] = []
        new = {path.resolve() for path in self.texts if not path.exists()}
        try:
            for path, (_, after) in self.texts.items():
                target = path.resolve()  # what a symbolic link refers to
                target.parent.mkdir(parents=True, exist_ok=True)
                number, prepared[target] = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
                with os.fdopen(number, "wb") as file:
                    file.write(after)
                if target.exists():
                    shutil.copymode(target, prepared[target])
                else:
                    umask = os.umask(0)
                    os.umask(umask)
                    os.chmod(prepared[target], 0o666 & ~umask)
            for path, (before, _) in self.texts.items():
                if (path.read_bytes() if path.exists() else b"") != before:
                    raise OSError(None, "has changed meanwhile; run the command again", str(path))
            for target, name in prepared.items():
                os.replace(name, target)
                done.append(target)
        except BaseException:
            for path, (before, _) in self.texts.items():
                if path.resolve() in done and path.resolve() in new:
                    path.unlink()
                elif path.resolve() in done:
                    path.write_bytes(before)
            for name in prepared.values():
                with suppress(FileNotFoundError):
                    os.unlink(name)
            raise


def python_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the Python files of files and directories, but not those of virtual environments and hidden directories.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    for path in paths:
        if path.is_file():
            yield path
            continue
        if not path.is_dir():
            raise FileNotFoundError(2, "no such file or directory", str(path))
        for folder, folders, names in os.walk(path):
            is_hidden = (Path(folder, each, "pyvenv.cfg").exists() or each.startswith(".") for each in sorted(folders))
            folders[:] = [
                each
                for each, hidden in zip(sorted(folders), is_hidden, strict=True)
                if not hidden and each not in SKIPPED
            ]
            yield from (Path(folder, each) for each in sorted(names) if each.endswith(".py"))


def plan(paths: Sequence[Path], directory: Path, name: str | None = None) -> Migration:
    """Return what would change in some files and directories, and in the policy file.

    Args:
        paths: files and directories.
        directory: the directory of the policy files.
        name: the name of the profile. Default: that of each module.

    Raises:
        ConfigError: a profile exists with other values, or the policy file cannot be extended.
        OSError: a file cannot be read.
    """
    files = Files(directory)
    migration = Migration(files.base)
    named: dict[str, Profile] = {}
    mentions = [each.encode() for each in TRANSLATORS]
    for path in {each.resolve(): each for each in python_files(paths)}.values():
        source = path.read_bytes()
        if not any(each in source for each in mentions):
            continue
        try:
            module = Module(source, partial(_may_name, path, files))
        except (cst.ParserSyntaxError, UnicodeDecodeError, SyntaxError, RecursionError) as error:
            line = getattr(error, "raw_line", None)
            migration.unreadable[path] = f"is not valid Python{'' if line is None else f', see line {line}'}"
            continue
        profiles = _names(module, path, name, named, files)
        migration.replaced += [Use(path, module.found[index], profile) for index, profile in profiles.items()]
        migration.left += [Use(path, each) for each in module.found if each.translation is None]
        if profiles:
            migration.texts[path] = source, module.rewritten(profiles)
    for each, profile in named.items():
        existing = files.existing(each)
        if existing is None:
            migration.profiles[each] = profile
        elif existing != profile:
            raise ConfigError(
                f"{show_path(files.base.absolute())} has a profile {each!r} with other values; choose another name by "
                "--name, or rename it"
            )
    if migration.profiles:
        after = files.with_profiles(migration.profiles)
        # The policy file first: a program that starts meanwhile then has the profiles that its code names.
        migration.texts = {files.base: (files.text.encode(), after.encode()), **migration.texts}
    return migration


def _may_name(path: Path, files: Files, name: str) -> bool:
    """Return whether profiles may name what a file imports: not what is its project's own, as programs that share the
    profiles may not be able to import it."""
    module, folder = name.partition(".")[0], path.resolve().parent
    roots = [folder, *(each for each in folder.parents if each.is_relative_to(Path.cwd())), Path.cwd() / "src"]
    is_own = any((each / module).is_dir() or (each / f"{module}.py").is_file() for each in roots)
    return not is_own and not files.restricts_imports


def _names(module: Module, path: Path, name: str | None, named: dict[str, Profile], files: Files) -> dict[int, str]:
    """Return index of what is found → the name of its profile, and add these profiles to `named`."""
    profiles = {
        index: files.profile(each.translation)
        for index, each in enumerate(module.found)
        if each.translation is not None
    }
    # The functions of a profile share what is added to it later, such as a rate limit, so each module has its own.
    own: dict[str, Profile] = named if name else {}
    first = name or _module_name(path, named)
    # What most functions have gets the shortest name.
    common = Counter(map(repr, profiles.values()))
    names: dict[int, str] = {}
    for index, profile in sorted(profiles.items(), key=lambda each: -common[repr(each[1])]):
        longer = f"{first}_{module.found[index].function.rpartition('.')[2]}"
        equal = (each for each in own if own[each] == profile)
        free = itertools.chain([first, longer], (f"{longer}_{number}" for number in itertools.count(2)))
        names[index] = next(itertools.chain(equal, (each for each in free if each not in named)))
        own[names[index]] = named[names[index]] = profile
    return dict(sorted(names.items()))


def _module_name(path: Path, taken: Container[str]) -> str:
    """Return the name of a module, with that of its package if it is taken."""
    package = path.absolute().parent.name
    name = re.sub(r"\W", "_", package if path.stem == "__init__" else path.stem)
    return re.sub(r"\W", "_", f"{package}_{name}") if name in taken else name
