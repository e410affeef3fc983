"""The README's example runs as written, with the reference profiles."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest

from opero import Registry, set_default_registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs_and_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {
        "__name__": "__main__",
        "paths": ["a.png", "b.png"],
        "some_library": types.SimpleNamespace(ping=lambda: "pong"),
    }
    set_default_registry(Registry.load(ROOT / "policies", "production", {}))
    try:
        exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    finally:
        set_default_registry(None)
    assert names["prices"] == [None] * 3
    assert names["thumbnails"] == [None] * 2
    assert names["ping"]() == "pong"
    assert names["get_price"].policy.rate_limit.rate == 50


def test_its_yaml_is_a_policy_file(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "production.yaml").write_text(text, encoding="utf-8")
    assert Registry.load(tmp_path, "production", {})["api"].retry.retries == 5  # type: ignore[union-attr]


def test_its_code_is_some_twenty_lines_and_its_claim_three_sentences() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    claim = README.split("```")[0].split("\n\n", 1)[1]
    assert len(re.findall(r"\.(?:\s|$)", claim)) == 3
