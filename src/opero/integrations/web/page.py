"""The live page, and the headers under which a browser runs nothing else."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from opero.integrations.web.messages import Response


@cache
def page() -> Response:
    """Return the page. Its scripts and styles are allowed by their hashes, and no others."""
    text = files("opero.integrations.web").joinpath("page.html").read_text("utf-8")
    sources = {tag: " ".join(map(_hash, re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL))) for tag in TAGS}
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {sources['script']}",
            f"style-src {sources['style']}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )
    return Response(200, text.encode(), "text/html; charset=utf-8", [("Content-Security-Policy", policy)])


TAGS = ("script", "style")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
