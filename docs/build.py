"""Builds the documentation as a site in .site/html: `make docs`.

The documents are plain Markdown that reads well where it is. Here their links to other files of the repository become
links to pages: README.md is the first page, and each example has one of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = ROOT / ".site"
PAGES = SITE / "pages"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
NAMES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "examples": "examples/index.md",
    "examples/README.md": "examples/index.md",
}


def page_of(path: str) -> str:
    """The page that a file of the repository becomes."""
    if path in NAMES:
        return NAMES[path]
    if path.startswith("examples/"):
        return path.removesuffix(".py") + ".md"
    return path.removeprefix("docs/")


def moved(text: str, source: str) -> str:
    """The text of a document, with its links as the pages need them."""
    here = PAGES / page_of(source)

    def link(match: re.Match[str]) -> str:
        target = (ROOT / source).parent.joinpath(match[1]).resolve().relative_to(ROOT)
        return Path(os.path.relpath(PAGES / page_of(target.as_posix()), here.parent)).as_posix()

    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def write(source: str, text: str) -> None:
    page = PAGES / page_of(source)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def main() -> int:
    shutil.rmtree(SITE, ignore_errors=True)
    documents = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("examples/*.md")]
    for document in documents:
        source = document.relative_to(ROOT).as_posix()
        write(source, moved(document.read_text(encoding="utf-8"), source))
    for example in ROOT.glob("examples/*.py"):
        code = example.read_text(encoding="utf-8")
        write(example.relative_to(ROOT).as_posix(), f"# {example.name}\n\n```python\n{code}```\n")
    write("LICENSE", f"# License\n\n```text\n{(ROOT / 'LICENSE').read_text(encoding='utf-8')}```\n")
    for other in [*DOCS.glob("*.png"), *DOCS.glob("*.svg"), *DOCS.glob("*.txt")]:
        shutil.copy(other, PAGES)
    shutil.copy(DOCS / "mkdocs.yml", SITE)
    code = subprocess.run(["zensical", "build", "--strict", "-f", str(SITE / "mkdocs.yml")], check=False).returncode
    return code or missing_pictures()


def missing_pictures() -> int:
    """Print the pictures that a page shows and the site lacks, which zensical does not, and return their number."""
    missing = 0
    for page in (SITE / "html").rglob("*.html"):
        for picture in re.findall(r'<img[^>]* src="?(?![a-z]+:)([^\s">]+)', page.read_text(encoding="utf-8")):
            if not (page.parent / picture).exists():
                print(f"{page.relative_to(SITE)}: there is no {picture}", file=sys.stderr)
                missing += 1
    return missing


if __name__ == "__main__":
    sys.exit(main())
