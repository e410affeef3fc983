"""More data than memory: a stream reads ahead only a little, and `max_memory` bounds a map.

python examples/bounded_memory.py
"""

from __future__ import annotations

from collections.abc import Iterator

from opero import opmap

LARGE = 400_000_000


class Rows:
    """A million rows, made as they are read, which counts how many were."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(1_000_000):
            self.read += 1
            yield number


@opmap(mode="thread", workers=4, window=50)
def parse(row: int) -> str:
    return f"row {row}"


@opmap(mode="process", workers=1, max_memory="300MB", on_error="return")
def decode(size: int) -> int:
    """Work that needs `size` bytes at a time."""
    return len(bytearray(b"x") * size)


def main() -> None:
    rows = Rows()
    for done, _ in enumerate(parse.stream(rows), 1):
        if done == 100:
            break
    print(f"stopped after 100 results; {rows.read} of 1,000,000 rows were read")

    sizes = [1_000, 2_000, LARGE, 3_000]
    results: list[int | BaseException] = [*decode(sizes)]
    for size, result in zip(sizes, results, strict=True):
        outcome = type(result).__name__ if isinstance(result, BaseException) else f"{result:,} bytes"
        print(f"decode {size:,}: {outcome}")


if __name__ == "__main__":
    main()
