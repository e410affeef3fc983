"""What a built package holds, and what an index shows of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import opero

ROOT = Path(__file__).parents[1]
URL = "https://git.example/owner/opero"


def build(directory: Path, *targets: str, **variables: str) -> list[Path]:
    """Build the wheel, the sdist or both, and return their paths."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OPERO_")}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(directory), *(f"-t{each}" for each in targets)],
        cwd=ROOT,
        env=environ | variables,
        check=True,
        capture_output=True,
    )
    return [path for target in targets for path in directory.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[target])]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("dist"), "wheel", "sdist")


def metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith("/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def test_the_wheel_has_the_package_and_nothing_else(built: list[Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = {each for each in archive.namelist() if ".dist-info/" not in each}
        others = {each.partition("/")[2] for each in archive.namelist() if ".dist-info/" in each}
    tracked = subprocess.run(
        ["git", "ls-files", "src/opero"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if tracked:
        assert {each.removeprefix("src/") for each in tracked} <= names
    assert {"opero/py.typed", "opero/cli/templates/base.yaml", "opero/integrations/web/page.html"} <= names
    assert not [each for each in names if not each.startswith("opero/") or "__pycache__" in each]
    assert others == {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "RECORD"}


def test_the_sdist_has_what_builds_and_tests_the_package(built: list[Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {each.partition("/")[2] for each in archive.getnames()}
    wanted = {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "Makefile"}
    wanted |= {"src/opero/py.typed", "tests/test_packaging.py", "policies/base.yaml", "docs/guide.md", "action.yml"}
    assert wanted <= names
    assert not [each for each in names if re.search(r"(^|/)(\.venv|__pycache__|\.hypothesis|\.git/)", each)]


def test_there_is_one_place_for_the_version(built: list[Path]) -> None:
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert metadata(built[0])["Version"] == opero.__version__
    assert f"-{opero.__version__}-py3" in built[0].name


def test_the_metadata_says_what_an_index_shows(built: list[Path]) -> None:
    told = metadata(built[0])
    assert told["Author"] == "opero contributors"
    assert told["License-Expression"] == "MIT"
    assert told["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in told.get_all("Classifier")
    assert told.get_all("Project-URL") is None, "it is not known where the repository is"


def test_the_readme_needs_no_file_beside_it(built: list[Path]) -> None:
    told = metadata(built[0])
    assert told["Description-Content-Type"] == "text/markdown"
    text = told.get_payload()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [each for each in links if not re.match(r"https?:|#", each)] == []
    assert "live-page.png" not in text
    own = (ROOT / "README.md").read_text("utf-8")
    assert text.count("\n    ") == own.count("\n    "), "its code is as it was"


def test_with_the_url_of_the_repository_the_links_lead_there(tmp_path: Path) -> None:
    told = metadata(build(tmp_path, "wheel", OPERO_REPOSITORY_URL=f"{URL}/")[0])
    urls = dict(each.split(", ", 1) for each in told.get_all("Project-URL"))
    version = f"v{opero.__version__}"
    assert urls == {
        "Repository": URL,
        "Documentation": f"{URL}/tree/{version}/docs",
        "Changelog": f"{URL}/blob/{version}/CHANGELOG.md",
        "Issues": f"{URL}/issues",
    }
    text = told.get_payload()
    assert f"]({URL}/raw/{version}/docs/live-page.png)" in text
    assert f"]({URL}/blob/{version}/docs/guide.md#live-page)" in text
    assert f"]({URL}/tree/{version}/examples/)" in text
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        path = re.fullmatch(rf"{URL}/(?:raw|blob|tree)/{version}/([^#]+)(?:#.*)?", link)
        assert path is None or (ROOT / path[1]).exists(), link


def test_the_release_workflow_finds_the_version_and_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    script = next(step["run"] for step in steps if step.get("name") == "The tag is the version")
    for tag, code in ((f"v{opero.__version__}", 0), ("v9.9.9", 1)):
        environ = os.environ | {"GITHUB_REF_NAME": tag}
        done = subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, env=environ, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [word for step in steps for word in re.findall(r"make ([a-z]+)", step.get("run", ""))]
    assert targets == ["dist"]
    assert all(re.search(rf"^{each}:", makefile, re.MULTILINE) for each in targets)
