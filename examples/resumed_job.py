"""10,000 records with a journal: the job is killed in the middle, and its next run does what is missing.

python examples/resumed_job.py           # runs itself as a job, kills it, and runs it again
python examples/resumed_job.py --work    # the job alone, with the journal in the working directory
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from opero import opmap

RECORDS = 10_000
JOURNAL = "records.jsonl"
DONE = "done.txt"
"""Has a character for each record that was really worked on, in whichever run."""


def records() -> Iterator[str]:
    for number in range(RECORDS):
        yield f"record {number}"


@opmap(mode="thread", workers=8, retries=2, progress=False)
def enrich(record: str) -> str:
    time.sleep(0.002)
    with open(DONE, "ab", buffering=0) as done:
        done.write(b".")
    return record.upper()


def work() -> None:
    results = enrich(records(), journal=JOURNAL)
    print(f"{len(results):,} results, from {results[0]!r} to {results[-1]!r}")


def main() -> None:
    command = [sys.executable, __file__, "--work"]
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / DONE
        with subprocess.Popen(command, cwd=folder) as job:
            while not done.exists() or done.stat().st_size < RECORDS // 3:
                time.sleep(0.01)
            job.kill()  # as a machine that loses its power would
        print(f"killed after {done.stat().st_size:,} of {RECORDS:,} records")
        print(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout, end="")
        twice = done.stat().st_size - RECORDS
        print(f"{twice} records were worked on twice: what was not in the journal yet")
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        print(f"a third run works on {done.stat().st_size - RECORDS - twice}")


if __name__ == "__main__":
    if "--work" in sys.argv:
        work()
    else:
        main()
