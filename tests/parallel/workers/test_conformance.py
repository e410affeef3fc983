"""Every kind of workers passes the same suite: `opero.testing.workers`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from opero.testing.workers import WorkerTests


class TestThreads(WorkerTests):
    options = {"mode": "thread", "workers": 4}
    shares_memory = True
    survives_deaths = False


class TestProcesses(WorkerTests):
    options = {"mode": "process", "workers": 2}
    is_prompt = True


class TestEventLoop(WorkerTests):
    options = {"mode": "async", "workers": 10}
    is_async = True
    shares_memory = True
    survives_deaths = False
    is_prompt = True


class TestEventLoopsInProcesses(WorkerTests):
    options = {"mode": "async_process", "workers": 2}
    is_async = True
    is_prompt = True


class TestExecutorOfProcesses(WorkerTests):
    """An executor object, which cannot be replaced when it breaks."""

    survives_deaths = False
    stops_at_once = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def executor(cls) -> Iterator[None]:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
            cls.options = {"executor": executor}
            yield


class TestExecutorOfProcessesForAsyncFunctions(TestExecutorOfProcesses):
    is_async = True


class TestExecutorOfThreads(WorkerTests):
    shares_memory = True
    survives_deaths = False
    stops_at_once = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def executor(cls) -> Iterator[None]:
        with ThreadPoolExecutor(4) as executor:
            cls.options = {"executor": executor}
            yield
