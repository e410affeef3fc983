"""The picture of `opero explain` shows what the command prints. Run as a program, this module draws it."""

from __future__ import annotations

import html
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "explain.svg"
COMMAND = "OPERO_API_RETRIES=6 opero explain api --env production"
STYLES = {
    r"^\$ .*": "bold",
    r"(?m)^option .*source$": "bold",
    r"(?m)^(?:  overrides| {10,}).*": "dim",
    r"OPERO_[A-Z_]+": "bright_yellow",
    r"policies/\S+?\.yaml(:\d+:\d+)?": "bright_cyan",
}


def printed() -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith("OPERO_") and name != "ENVIRONMENT"}
    command = [sys.executable, "-m", "opero", *COMMAND.partition("opero ")[2].split()]
    environment = {**own, "OPERO_API_RETRIES": "6", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def draw() -> None:
    text = f"$ {COMMAND}\n{printed()}".rstrip()
    console = Console(record=True, width=max(map(len, text.splitlines())) + 2, file=io.StringIO())
    shown = Text(text)
    for pattern, style in STYLES.items():
        shown.highlight_regex(pattern, style)
    console.print(shown, soft_wrap=True)
    template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # fonts of another site
    PICTURE.write_text(console.export_svg(title="opero explain", code_format=template, unique_id="explain"), "utf-8")


def test_it_shows_what_the_command_prints() -> None:
    lines: dict[str, str] = {}
    for height, line in re.findall(
        r'<text class="explain-r\d+"[^>]* y="([\d.]+)"[^>]*>(.*?)</text>', PICTURE.read_text("utf-8")
    ):
        lines[height] = lines.get(height, "") + html.unescape(line)
    found = [re.sub(r"\s+", "", each) for each in lines.values()]
    wanted = [re.sub(r"\s+", "", each) for each in (f"$ {COMMAND}", *printed().splitlines()) if each.strip()]
    assert [each for each in found if each] == wanted, f"run python {Path(__file__).name} to draw it again"


def test_it_is_small_and_loads_nothing() -> None:
    text = PICTURE.read_text("utf-8")
    assert len(text) < 100_000
    assert re.findall(r"https?://[^\s\"']+", text) == ["http://www.w3.org/2000/svg", "https://www.textualize.io"]


if __name__ == "__main__":
    draw()
