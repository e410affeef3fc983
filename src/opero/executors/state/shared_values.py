"""What is remembered of the values of a fallback argument, in a file that the processes of a machine share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from opero.executors.state.shared_home import FileHome, has_ended, releasing, this_process
from opero.executors.state.values import Memory, forgotten, merge
from opero.executors.state.values_home import NO_OWNER, ValuesHome
from opero.runtime.clock import SYSTEM

if TYPE_CHECKING:
    from opero.executors.state.home import Owner
    from opero.runtime.state_file import StateFile

R = TypeVar("R")
Args = TypeVarTuple("Args")

LOOK_EVERY = 1.0
"""Seconds between looks for processes that have ended with calls in flight."""


class SharedValues(FileHome, ValuesHome):
    """Keeps the memory in a file: its number is the next turn, and its version that of the memory."""

    def __init__(self, file: StateFile) -> None:
        super().__init__(file)
        self._key: bytes | None = None
        self._next_look = 0.0

    @property
    def version(self) -> int:
        return self.file.version if self.location.home is self else -1

    @property
    @releasing
    def key(self) -> bytes:
        if self._key is None:
            with self.file:
                self._key = self.values().key
        return self._key

    @property
    def owner(self) -> Owner:
        return this_process()

    def change(self, decide: Callable[[Memory, *Args], R], *args: *Args) -> R:
        with self.file:
            self.check()
            memory = self.values()
            if len(memory.running) > 1 and (now := SYSTEM.monotonic()) >= self._next_look:
                self._next_look = now + LOOK_EVERY
                forgotten(memory, has_ended)
            result = decide(memory, *args)
            self._write(memory)
            return result

    def next_turn(self) -> int:
        with self.file as file:
            self.check()
            turn = int(file.number)
            file.number = turn + 1
            return turn

    def values(self) -> Memory:
        memory: Memory = self.file.read()
        return memory

    def receive(self, values: Memory) -> None:
        held: Memory | None = self.file.read()
        running = {this_process() if owner == NO_OWNER else owner: loads for owner, loads in values.running.items()}
        moved = replace(values, running=running)
        if held is not None:
            merge(held, moved)
        self._write(moved if held is None else held)

    def _write(self, memory: Memory) -> None:
        self.file.write(memory)
        self.file.version = memory.version
