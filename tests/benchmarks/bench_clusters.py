"""How many trivial items a second maps on dask and ray do, beside one task an item through joblib's backends."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import distributed
import joblib
import ray
from ray.util.joblib import register_ray
from tests.benchmarks.harness import Row

from opero import opmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ITEMS, THEIR_ITEMS = 2000, 400
"""Items a round; the peers are slow, and their time is scaled."""
TARGET = 0.333
WORKERS = 2
PAIRS = 3


def paired(name: str, ours: Callable[[range], Any], peer: str, theirs: Callable[[range], Any], rounds: int) -> Row:
    """Nanoseconds an item, in turns; only a peer that gives one task an item has a target."""
    expected = [abs(number) for number in range(-ITEMS, 0)]
    assert list(ours(range(-ITEMS, 0))) == expected  # both are warm then
    assert list(theirs(range(-THEIR_ITEMS, 0))) == expected[-THEIR_ITEMS:]
    pairs = [(seconds(ours, ITEMS), seconds(theirs, THEIR_ITEMS)) for _ in range(max(PAIRS, rounds // 40))]
    mine, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    target = TARGET if "a task an item" in peer else None
    note = f"{1 / mine:,.0f} items a second; theirs {1 / other:,.0f}"
    return Row(name, mine * 1e9, peer, other * 1e9, ratio, target, note)


def seconds(function: Callable[[range], Any], count: int) -> float:
    """Seconds an item."""
    began = time.perf_counter()
    function(range(-count, 0))
    return (time.perf_counter() - began) / count


def absolute(number: int) -> int:
    return abs(number)  # which ray does not take itself


@contextmanager
def by_joblib(backend: str, batch_size: int | str) -> Iterator[Callable[[range], Any]]:
    """One `Parallel` that is entered once: what starting its workers costs is not counted."""
    with (
        joblib.parallel_config(backend=backend, n_jobs=WORKERS),
        joblib.Parallel(batch_size=batch_size) as parallel,
    ):
        yield lambda items: parallel(joblib.delayed(abs)(item) for item in items)


@contextmanager
def dask() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def ray_here() -> Iterator[None]:
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder  # else ray leaves a token in the user's
        try:
            ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")
            yield
        finally:
            ray.shutdown()
            os.environ["HOME"] = home or ""


def run(rounds: int) -> list[Row]:
    warnings.simplefilter("ignore")  # the peers'
    rows = []
    with dask() as client:
        ours = opmap(mode="dask", retries=0)(abs)
        with by_joblib("dask", 1) as theirs:
            rows.append(paired("dask", ours, "joblib, a task an item", theirs, rounds))
        with by_joblib("dask", "auto") as theirs:
            rows.append(paired("dask", ours, "joblib, batch_size=auto", theirs, rounds))
        rows.append(
            paired("dask", ours, "client.map", lambda items: client.gather(client.map(abs, items, pure=False)), rounds)
        )
        executor = client.get_executor(pure=False)
        over = opmap(executor=executor, workers=WORKERS, retries=0)(abs)
        rows.append(paired("dask", ours, "ours over its executor", over, rounds))
    with ray_here():
        register_ray()
        ours = opmap(mode="ray", retries=0)(abs)
        with by_joblib("ray", 1) as theirs:
            rows.append(paired("ray", ours, "joblib, a task an item", theirs, rounds))
        with by_joblib("ray", "auto") as theirs:
            rows.append(paired("ray", ours, "joblib, batch_size=auto", theirs, rounds))
        task = ray.remote(absolute)
        rows.append(paired("ray", ours, "ray.remote", lambda items: ray.get([task.remote(i) for i in items]), rounds))
    return rows
