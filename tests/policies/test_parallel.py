from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from opero import ConfigError, ParallelPolicy, Policy
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

POOL = ThreadPoolExecutor(1)

GOOD: Good = [
    *(("mode", mode, mode) for mode in ("auto", "thread", "process", "async", "async_process", "dask", "ray")),
    ("workers", "auto", "auto"),
    ("workers", 4, 4),
    ("workers", "4", 4),
    ("workers", " Adaptive", "adaptive"),
    ("ordered", False, False),
    ("progress", "auto", "auto"),
    ("progress", True, True),
    ("batch", None, None),
    ("batch", True, True),
    ("batch_size", 10, 10),
    *(("on_error", choice, choice) for choice in ("raise", "return", "skip")),
    ("max_failures", 0, 0),
    ("max_failures", 3, 3),
    ("max_failures", "3", 3),
    ("max_failures", 0.05, 0.05),
    ("max_failures", "5%", 0.05),
    ("max_failures", "100%", 1.0),
    ("worker_retries", 0, 0),
    ("concurrency", 10, 10),
    ("inner_threads", "auto", "auto"),
    ("inner_threads", 2, 2),
    ("window", "auto", "auto"),
    ("window", 10, 10),
    ("executor", ThreadPoolExecutor, ThreadPoolExecutor),
    ("executor", "concurrent.futures:ThreadPoolExecutor", ThreadPoolExecutor),
    ("executor", POOL, POOL),
    ("initializer", named.an_hour, named.an_hour),
    ("initializer", "policies.named:an_hour", named.an_hour),
    ("address", "tcp://127.0.0.1:8786", "tcp://127.0.0.1:8786"),
    ("deadline", "1h", 3600.0),
    ("max_memory", "2GB", 2 * 10**9),
]
BAD: Bad = [
    ("mode", "threads", "'threads' is not one of 'auto', 'thread', 'process', .*; did you mean 'thread'"),
    ("mode", None, "'auto', 'thread', 'process'"),
    ("workers", 0, 'use an integer >= 1, "auto" or "adaptive"'),
    ("workers", True, "workers"),
    ("workers", "all", 'use an integer >= 1, "auto" or "adaptive"'),
    ("ordered", "x", "is not a boolean: use true or false"),
    ("progress", "x", "progress"),
    ("batch", "x", "is not a boolean: use true or false"),
    ("batch_size", 0, "greater than or equal to 1"),
    ("on_error", "ignore", "'ignore' is not one of 'raise', 'return', 'skip'"),
    ("max_failures", -1, "-1 is invalid: use a count"),
    ("max_failures", 1.5, "1.5 is invalid: use a count"),
    ("max_failures", "120%", "'120%' is invalid: use a count"),
    ("max_failures", True, "True is invalid: use a count"),
    ("max_failures", "some", "'some' is invalid: use a count"),
    ("worker_retries", -1, "greater than or equal to 0"),
    ("concurrency", 0, "greater than or equal to 1"),
    ("inner_threads", 0, 'use an integer >= 1, or "auto"'),
    ("window", 0, 'use an integer >= 1, or "auto"'),
    ("executor", 3, "3 is neither a concurrent.futures.Executor nor a function that returns one"),
    ("executor", "concurrent.futures:ThreadPool", "ThreadPool"),
    ("initializer", 3, "3 is not callable"),
    ("address", 3, "valid string"),
    ("deadline", 0, "0 is invalid: use a value > 0"),
    ("max_memory", "lots", "'lots' is not a size"),
    ("max_memory", 0, "0 is invalid: use a value > 0"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(ParallelPolicy, field, written, held)


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(ParallelPolicy, field, wrong, told)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(ParallelPolicy, GOOD, BAD)


def test_it_may_be_written_short() -> None:
    assert Policy(parallel="process") == Policy.from_options(mode="process") == Policy(parallel={"mode": "process"})
    with pytest.raises(ValueError, match="mode"):
        Policy.model_validate({"parallel": "procces"})


@pytest.mark.parametrize("mode", ["process", "async_process", "dask", "ray"])
def test_adaptive_workers_are_threads_or_tasks(mode: Any) -> None:
    with pytest.raises(ConfigError, match=f"not mode: {mode}; set a number or auto"):
        ParallelPolicy(workers="adaptive", mode=mode)
    with pytest.raises(ConfigError, match="not an executor; set a number or auto"):
        ParallelPolicy(workers="adaptive", executor="concurrent.futures:ThreadPoolExecutor")
    assert [ParallelPolicy(workers="adaptive", mode=each).workers for each in ("auto", "thread", "async")]
