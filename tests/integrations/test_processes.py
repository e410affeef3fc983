"""Programs with several processes: any of them shows what all have counted, and those that have died before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.request import urlopen

import pytest

from integrations.conftest import Series, series

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

LIMIT = 60.0

APP = """
import os
import opero.integrations.prometheus as exported
from opero import Policy, Registry, set_default_registry
from prometheus_client import Counter

set_default_registry(Registry({"api": Policy(bulkhead=3)}))
exported.instrument()
others = Counter("others", "of the program itself")

from opero import opero

@opero(policy="api")
def work():
    others.inc()
    return str(os.getpid())

if os.environ.get("CALLS"):
    work()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        text, content_type = exported.exposition()
        start_response("200 OK", [("Content-Type", content_type), ("X-Pid", str(os.getpid()))])
        return [text]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [work().encode()]
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPERO_", "PROMETHEUS_"))}
    return {**environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(folder.parent), **more}


def folder_in(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@contextmanager
def gunicorn(tmp_path: Path, *options: str, **variables: str) -> Iterator[str]:
    """Run the app in two workers; its address."""
    (tmp_path / "the_app.py").write_text(APP)
    command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", "127.0.0.1:0", *options, "the_app:app"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            command, env=environment(folder_in(tmp_path), **variables), stderr=stderr, stdout=stderr, cwd=tmp_path
        )
    try:
        address = until(lambda: re.search(r"Listening at: (http://\S+)", log.read_text()))
        assert address is not None
        yield address[1]
    except BaseException:
        print(log.read_text())
        raise
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(LIMIT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def until(ask: Callable[[], Any]) -> Any:
    """Ask until the answer is true; the answer."""
    end = time.monotonic() + LIMIT
    while not (answer := ask()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return answer


def get(address: str, path: str) -> tuple[str, str]:
    """The body, and the process that scraped."""
    with urlopen(f"{address}{path}", timeout=LIMIT) as response:
        return response.read().decode(), response.headers.get("X-Pid", "")


def calls(found: dict[str, Series]) -> float:
    return found.get("opero_calls_total", {}).get(("the_app:work", "succeeded", "api"), 0)


@pytest.mark.parametrize(
    ("options", "variables", "before"), [((), {}, 0), (("--preload",), {"CALLS": "1"}, 1)], ids=["fresh", "preload"]
)
def test_any_worker_of_gunicorn_shows_the_calls_of_all_of_them(
    options: tuple[str, ...], variables: dict[str, str], before: int, tmp_path: Path
) -> None:
    with gunicorn(tmp_path, *options, **variables) as address:
        total = before
        workers: set[str] = set()

        def both_have_worked() -> bool:
            nonlocal total
            workers.add(get(address, "/work")[0])
            total += 1
            return len(workers) == 2

        def scraped_by(pid: str) -> dict[str, Series] | None:
            text, scraper = get(address, "/metrics")
            return series(text) if scraper == pid else None

        until(both_have_worked)
        one, other = sorted(workers)
        for pid in workers:
            found = until(lambda pid=pid: (it := scraped_by(pid)) is not None and calls(it) == total and it)  # type: ignore[misc]
            assert found["others_total"] == {(): total}, "prometheus_client's own agree"
        # `one` has seen what `other` had counted: its file is there.
        os.kill(int(other), signal.SIGKILL)
        before_kill = found["opero_bulkhead_slots"]["", "api"]
        after = until(
            lambda: (it := scraped_by(one)) is not None and it["opero_bulkhead_slots"]["", "api"] < before_kill and it
        )
        assert calls(after) == total, "what it has counted outlives it"
        assert after["opero_bulkhead_slots"]["", "api"] == before_kill - 3
        assert (tmp_path / "shared" / "opero-gone.json").exists()
        assert not list((tmp_path / "shared").glob(f"opero-{other}-*"))

        def a_new_one_has_worked() -> bool:
            nonlocal total
            total += 1
            return get(address, "/work")[0] not in workers

        until(a_new_one_has_worked)
        until(lambda: calls(series(get(address, "/metrics")[0])) == total)


def run(code: str, folder: Path) -> str:
    code = f"{APP}\n{dedent(code)}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COUNT = """
def count():
    collector, = exported._of_all_processes
    return collector.values()["opero_calls"]["api", f"{__name__}:work", "succeeded"]
"""


def test_a_forked_process_counts_from_zero(tmp_path: Path) -> None:
    out = run(
        COUNT
        + dedent("""
            for _ in range(5):
                work()
            child = os.fork()
            if not child:
                for _ in range(3):
                    work()
                exported._of_all_processes[0]._files.write()
                os._exit(0)
            os.waitpid(child, 0)
            work()
            print(count())
        """),
        folder_in(tmp_path),
    )
    assert out == "9\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, processes are not forked by default")
def test_a_process_of_multiprocessing_writes_at_its_end(tmp_path: Path) -> None:
    out = run(
        COUNT
        + dedent("""
            import multiprocessing
            work()
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join()
            print(count())
        """),
        folder_in(tmp_path),
    )
    assert out == "2\n"


def test_the_next_program_goes_on_from_what_this_one_has_counted(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    for total in (1, 2, 3):
        assert run(COUNT + "work(); print(count())", folder) == f"{total}\n"
    files = {each.name.partition("-")[2][:4] for each in folder.glob("opero-*.json")}
    assert "gone" in files


def test_files_that_were_moved_are_not_counted_twice(tmp_path: Path) -> None:
    """As if a process had died between writing the file of those that have ended and removing theirs."""
    folder = folder_in(tmp_path)
    run("work()", folder)
    (left,) = folder.glob("opero-*.json")
    text = left.read_text()
    assert run(COUNT + "print(count())", folder) == "1\n"
    left.write_text(text)
    assert left.name in json.loads((folder / "opero-gone.json").read_text())["files"]
    assert run(COUNT + "print(count())", folder) == "1\n"
    run(COUNT + "count()", folder)
    assert not left.exists()


def test_every_registry_of_prometheus_shows_all_processes(tmp_path: Path) -> None:
    """As with the handler that prometheus_client documents, which makes a registry for each request."""
    out = run(
        """
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess
        for _ in range(2):
            work()
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            exported.instrument(prometheus_registry=registry)
            lines = generate_latest(registry).decode().splitlines()
            print(sum("opero_calls_total" in each and each.endswith("} 2.0") for each in lines))
        print(len(exported._of_all_processes))
        """,
        folder_in(tmp_path),
    )
    assert out == "0\n1\n1\n"


def test_a_directory_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    code = "import opero.integrations.prometheus as exported; exported.instrument()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path / "none"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"PROMETHEUS_MULTIPROC_DIR: there is no directory '{tmp_path / 'none'}': create it" in done.stderr
