"""The directory of this user's files: in the session's directory if that is private, else a private temporary one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from opero.runtime import user_folder as module
from opero.runtime.user_folder import user_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the session; the temporary directory is beside it."""
    for name in ("session", "temporary"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "session"))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "session"


def temporary(session: Path) -> Path:
    return session.parent / "temporary" / f"opero-{os.getuid()}"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_in_the_directory_of_the_session_and_private(session: Path) -> None:
    assert user_folder() == session / "opero"
    assert user_folder() == session / "opero"
    assert mode(session / "opero") == 0o700


def test_it_is_made_private(session: Path) -> None:
    (session / "opero").mkdir(mode=0o755)
    assert user_folder() == session / "opero"
    assert mode(session / "opero") == 0o700


@pytest.mark.parametrize("bits", [0o777, 0o1777, 0o770, 0o707], ids=oct)
def test_a_session_directory_that_others_can_write_is_refused(session: Path, bits: int) -> None:
    session.chmod(bits)
    assert user_folder() == temporary(session)
    assert mode(temporary(session)) == 0o700
    assert list(session.iterdir()) == []


def test_a_session_directory_below_one_that_others_can_write_is_refused(session: Path) -> None:
    session.parent.chmod(0o777)
    assert user_folder() == temporary(session)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files away")
def test_a_session_directory_of_another_user_is_refused(session: Path) -> None:
    os.chown(session, 12345, -1)
    assert user_folder() == temporary(session)


@pytest.mark.parametrize("value", ["", "relative", "/nowhere/at/all"])
def test_a_session_directory_that_is_none_is_passed_over(
    session: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.chdir(session)
    Path("relative").mkdir(mode=0o700)
    assert user_folder() == temporary(session)


@pytest.mark.parametrize("what", ["a file", "a link", "writable by others"])
def test_a_directory_that_is_not_ours_is_not_used(session: Path, what: str) -> None:
    for path in (session / "opero", temporary(session)):
        if what == "a file":
            path.write_text("x")
        elif what == "a link":
            path.symlink_to(session.parent)
        else:
            path.mkdir()
            path.chmod(0o777)
        if path.parent == session:
            assert user_folder() == temporary(session)
            temporary(session).rmdir()
    with pytest.raises(OSError, match="opero-"):
        user_folder()


def test_a_temporary_directory_that_is_gone_is_made_again(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    (session.parent / "temporary").rmdir()
    assert user_folder().is_dir()
