"""The demo does its work on real traffic in every environment, and fails when it should."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "demo.py")]
RECORDS = 30  # two pages; seven are asked for twice; five fail once


def environ(environment: str, **more: str) -> dict[str, str]:
    """The process's own environment, but for what configures opero."""
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith("OPERO_")}
    return own | {"OPERO_ENV": environment} | more


def finish(command: list[str], variables: dict[str, str], directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, env=variables, capture_output=True, text=True, timeout=120, check=False
    )


def run(environment: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return finish([*DEMO, "--records", str(RECORDS), *options], environ(environment, **more))


def rows(output: str) -> dict[str, str]:
    """The table, by the name at the head of each line."""
    return {line[:18].strip(): line[18:].strip() for line in output.splitlines()}


@pytest.mark.parametrize("environment", ["development", "staging", "production"])
def test_every_record_arrives_within_the_limit_and_the_table_says_so(environment: str) -> None:
    done = run(environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    table = {name: value.split() for name, value in rows(done.stdout).items()}
    assert table["calls"] == [str(RECORDS + 3 + 7), str(RECORDS)]  # the first page is asked for twice
    # The first key is refused to the first call, which goes on to the second. After that it is asked last: where the
    # second has failed, which is left to chance.
    retries, fallbacks = int(table["retries"][0]), int(table["fallbacks"][0])
    assert retries >= 5
    assert 1 <= fallbacks <= 1 + retries
    assert 5 <= int(table["recoveries"][0]) <= 6
    assert table["cache hits"] == ["8", "0"]
    assert table["attempts"] == [str(RECORDS + 2 + retries + fallbacks), str(RECORDS)]
    assert re.search(r"limit [\d.]+: 0 too many", done.stdout)
    assert environment in table["time"]
    assert done.stdout.endswith("every record is here, and no rule broken\n")


def test_it_shows_what_happens_while_it_happens() -> None:
    shown = run("development").stdout
    steps = (
        *(r"reloaded: api\.rate_limit\.rate: 25/s → 50/s", r"fetch: 30 items done"),
        *(r"the service is down", r"circuit open: HTTPError: 503", r"circuit half open", r"circuit closed"),
        *(r"calls failed, \d+ were rejected", r"attempt 1 failed after .*: denied \(HTTP 401\)", r"succeeded after"),
        *(r"without opero, with a valid key: \d+ of 30 records lost",),
    )
    place = 0
    for step in steps:
        found = re.compile(step).search(shown, place)
        assert found, f"{step} is not in {shown[place:]}"
        place = found.end()


def test_it_fails_when_the_service_allows_less_than_the_profile_takes() -> None:
    done = run("development", "--limit", "5")
    assert done.returncode == 1
    assert re.search(r"FAILED: the service refused [1-9]\d* requests as over its limit", done.stdout)


def test_it_fails_when_a_record_is_not_what_it_should_be() -> None:
    program = (
        "import sys, demo\n"
        "right = demo.make_record\n"
        "demo.make_record = lambda number: right(number) | ({'name': 'other'} if number == 3 else {})\n"
        "sys.exit(demo.main())"
    )
    command = [sys.executable, "-c", program, "--records", "5"]
    variables = environ("development", OPERO_CONFIG=str(ROOT / "policies"))
    done = finish(command, variables, directory=ROOT / "examples")
    assert done.returncode == 1
    assert "FAILED: the records are not those of the service" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals as a terminal sends them")
def test_it_leaves_a_live_page_if_asked() -> None:
    demo = subprocess.Popen(
        [*DEMO, "--records", "5", "--live"],
        cwd=ROOT,
        env=environ("production"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with demo:
        assert demo.stdout is not None
        address = demo.stdout.readline().removeprefix("live page: ").strip()
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"<title>opero</title>" in page.read()
        while "Ctrl-C ends the demo" not in (line := demo.stdout.readline()):
            assert line, "the demo has ended"
        demo.send_signal(signal.SIGINT)
        shown, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert shown.endswith("every record is here, and no rule broken\n")


def test_without_its_policies_it_fails() -> None:
    done = run("development", OPERO_ENABLED="false")
    assert done.returncode == 1
    assert "401" in done.stderr


def test_an_operator_tunes_it_without_touching_code() -> None:
    done = run("development", OPERO_API_RATE_LIMIT="100", OPERO_API_RETRIES="4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "limit 200: 0 too many" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
@pytest.mark.parametrize("at_work", ["fetching", "fingerprinting"])
def test_ctrl_c_ends_it_soon_and_leaves_no_process(at_work: str) -> None:
    pipe = subprocess.PIPE
    command, variables = [*DEMO, "--records", "400"], environ("production", OPERO_API_RATE_LIMIT="1000")
    demo = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    with demo:
        # The service starts first; the worker processes start when it is time to fingerprint.
        least = 1 if at_work == "fetching" else 2
        while len(started := psutil.Process(demo.pid).children(recursive=True)) < least and demo.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)
        started += psutil.Process(demo.pid).children(recursive=True)
        os.killpg(demo.pid, signal.SIGINT)
        _, errors = demo.communicate(timeout=15)
    _, alive = psutil.wait_procs(set(started), timeout=5)
    assert "KeyboardInterrupt" in errors
    assert demo.returncode != 0
    assert not alive
