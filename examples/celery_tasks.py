"""Celery tasks under a policy: short retries within a task by opero, long ones by Celery.

python examples/celery_tasks.py    # starts a worker with two processes, sends tasks, and ends

It needs celery and requests. Broker and results are files of a temporary directory, which is where the worker runs.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from celery import Celery
from loopback import Loopback

from opero import opero

app = Celery("celery_tasks")
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": "queue",
        "data_folder_out": "queue",
        "control_folder": "queue",
        "polling_interval": 0.05,
    },
    result_backend="file://results",
)


@app.task
@opero(retries=4, min_delay="10ms", rate_limit="50/s", timeout="20s")
def parcel(url: str) -> str:
    """One execution of the task is one call: its retries take milliseconds, and keep the task in its worker."""
    response = requests.get(url, timeout=5)
    response.raise_for_status()
    return str(response.json()["state"])


@app.task(bind=True, max_retries=3)
@opero(retries=2, min_delay="10ms")
def invoice(self: Any, number: int) -> str:
    """Celery's own retry puts the task back into its queue, for later; opero lets it pass."""
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return f"invoice {number}, at the third execution"


def main() -> None:
    numbers = itertools.count(1)

    def carrier(path: str, headers: Any) -> tuple[int, Any]:
        return (503, "busy") if next(numbers) % 3 == 0 else (200, {"state": f"{path[1:]} is delivered"})

    with tempfile.TemporaryDirectory() as folder, Loopback(carrier) as service:
        here = Path(__file__).parent
        os.chdir(folder)
        for name in ("queue", "results"):
            Path(name).mkdir()
        command = [sys.executable, "-m", "celery", "-q", "--workdir", folder, "-A", "celery_tasks", "worker", "-c", "2"]
        paths = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        with subprocess.Popen(
            [*command, "--without-mingle", "--without-gossip", "--loglevel", "ERROR"],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
        ) as worker:
            try:
                # By their names, as a program does that sends tasks and does not run them.
                parcels = [app.send_task("celery_tasks.parcel", [f"{service.url}/parcel-{each}"]) for each in range(9)]
                later = app.send_task("celery_tasks.invoice", [7])
                for each in parcels[:3]:
                    print(each.get(timeout=60))
                print(sum(each.get(timeout=60).endswith("delivered") for each in parcels), "of 9 tasks succeeded")
                print(later.get(timeout=60))
                print(len(service.paths) - 9, "of their requests were repeated")
            finally:
                app.control.shutdown()
                worker.wait(30)
        os.chdir(here)


if __name__ == "__main__":
    main()
