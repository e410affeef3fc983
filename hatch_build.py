"""What the metadata of a built package takes from elsewhere: its README, and where its repository is.

The variable `OPERO_REPOSITORY_URL`, which the release workflow sets, becomes the URLs of the project and the base of
the links in its README, as a package index shows that without the files beside it. Without it, such links are text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "OPERO_REPOSITORY_URL"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


class Hook(MetadataHookInterface):
    """Completes the metadata of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        url = os.environ.get(VARIABLE, "").rstrip("/")
        if url and not re.fullmatch(r"https://[^\s/]+/\S+", url):
            raise ValueError(f"{VARIABLE} is {url!r}; set it to a URL such as https://github.com/OWNER/opero")
        text = Path(self.root, "README.md").read_text("utf-8")
        version = f"v{metadata['version']}"
        metadata["readme"] = {"content-type": "text/markdown", "text": standalone(text, url, version)}
        if url:
            metadata["urls"] = {
                "Repository": url,
                "Documentation": f"{url}/tree/{version}/docs",
                "Changelog": f"{url}/blob/{version}/CHANGELOG.md",
                "Issues": f"{url}/issues",
            }


def standalone(text: str, url: str, version: str) -> str:
    """Return Markdown whose links to files lead to the repository; without a URL, they are plain text."""

    def replaced(found: re.Match[str]) -> str:
        target = found["target"]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        if not url:
            return "" if found["image"] else found["text"]
        kind = "raw" if found["image"] else "tree" if target.endswith("/") else "blob"
        return f"{found['image']}[{found['text']}]({url}/{kind}/{version}/{target})"

    return LINK.sub(replaced, text)
