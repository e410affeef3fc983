"""Who could have written what is at a path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from opero.runtime.trusted_paths import distrusted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rights are not in the mode of a file")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
OTHER = 12345


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file three directories below a trusted one."""
    place = tmp_path / "a" / "b" / "c" / "file"
    place.parent.mkdir(parents=True)
    place.write_text("")
    return place


def test_what_belongs_to_this_user_and_root_is_trusted(place: Path) -> None:
    assert distrusted(place) == distrusted(place.parent, holds_files=True) == ""
    assert distrusted(place.parent / "absent" / "file") == ""
    assert distrusted("/", holds_files=True) == ""


@pytest.mark.parametrize("level", range(4))
def test_whatever_on_the_way_is_writable_by_all_is_named(place: Path, level: int) -> None:
    each = [place, *place.parents][level]
    each.chmod(0o777)
    assert distrusted(place) == f"{each} is writable by all users"
    each.chmod(0o775)
    assert distrusted(place) == ""


@needs_root
@pytest.mark.parametrize("level", range(4))
def test_whatever_on_the_way_belongs_to_another_user_is_named(place: Path, level: int) -> None:
    each = [place, *place.parents][level]
    os.chown(each, OTHER, -1)
    assert distrusted(place) == f"{each} belongs to another user (uid {OTHER})"


def test_a_sticky_directory_may_be_above_but_holds_no_files_that_could_be_others(place: Path) -> None:
    place.parent.chmod(0o1777)
    assert distrusted(place) == ""
    assert distrusted(place.parent, holds_files=True) == f"{place.parent} is writable by all users"


@pytest.mark.parametrize("is_relative", [False, True])
def test_what_a_link_leads_to_and_leads_through_is_looked_at(place: Path, tmp_path: Path, is_relative: bool) -> None:
    through = tmp_path / "through"
    through.mkdir()
    link = through / "link"
    link.symlink_to(os.path.relpath(place.parent, through) if is_relative else place.parent)
    first = tmp_path / "first"
    first.symlink_to(link)
    assert distrusted(first / "file") == ""
    for each in (place, place.parent.parent, through):
        each.chmod(0o777)
        assert distrusted(first / "file") == f"{each} is writable by all users"
        each.chmod(0o700)
    assert distrusted(first / "file") == ""


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert distrusted(tmp_path / "one" / "file") == ""


@needs_root
def test_a_link_of_another_user_is_not_followed_blindly(place: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(place)
    os.lchown(link, OTHER, -1)
    assert distrusted(link) == f"{link} belongs to another user (uid {OTHER})"
