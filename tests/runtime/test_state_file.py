"""A file that the processes of a machine share: its lock, when Ctrl-C comes while it is taken or released."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from opero.runtime import forking, state_file
from opero.runtime.state_file import StateFile


@pytest.mark.parametrize("where", ["lock", "unlock"])
def test_an_interruption_of_taking_or_releasing_leaves_the_lock_free(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile.create(tmp_path / "state", 64)
    calls = getattr(state_file, where)

    def interrupted(number: int) -> None:
        monkeypatch.undo()
        if where == "lock":
            calls(number)
        raise KeyboardInterrupt

    monkeypatch.setattr(state_file, where, interrupted)
    with pytest.raises(KeyboardInterrupt), file:
        pass
    free: list[bool] = []

    def take() -> None:
        with file:
            free.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(30)
    assert free == [True]
    assert threading.get_ident() not in forking.uninterrupted
