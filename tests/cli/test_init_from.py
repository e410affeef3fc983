"""`opero init --from app.py` runs a program, and makes policies of the requests of its clients."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.conftest import Command, finished, start
from integrations.clients.service import Service, running
from opero import Registry
from opero.cli.suggestions import Request, policies_text, read_requests
from opero.failures import Kind
from opero.registry.checks import check

PROGRAM = """
    import asyncio, sys, urllib.request
    from concurrent.futures import ThreadPoolExecutor

    def requests_(url):
        import requests
        with ThreadPoolExecutor(4) as pool:
            return [each.status_code for each in pool.map(requests.get, [url] * 40)]

    def httpx_(url):
        import httpx
        return httpx.post(url).status_code

    def aiohttp_(url):
        import aiohttp
        async def main():
            async with aiohttp.ClientSession() as client, client.get(url) as response:
                return response.status
        return asyncio.run(main())

    def openai_(url):
        import openai
        return openai.OpenAI(api_key="x", base_url=url, max_retries=0).post("/a", cast_to=str, body={})

    def urllib_(url):
        return urllib.request.urlopen(url).status

    for each in sys.argv[2:]:
        print(globals()[f"{each}_"](sys.argv[1]))
"""


@pytest.fixture
def service() -> Any:
    with running() as service:
        yield service


def init(command: Command, url: str, *clients: str, program: str = PROGRAM) -> dict[str, Any]:
    command.write("app.py", program)
    process = start("init", "new", "--from", f"app.py {url} {' '.join(clients)}", directory=command.directory)
    ran = finished(process)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[
        -1
    ] == f"next: read new/base.yaml, then opero run --config new app.py {url} " + " ".join(clients)
    text = (command.directory / "new/base.yaml").read_text("utf-8")
    assert command("check", "--config", "new").code == 0
    return {"text": " ".join(text.replace("#", " ").split()), **yaml.safe_load(text)}


def test_each_library_gets_a_profile_of_what_its_clients_did(command: Command, service: Service) -> None:
    service.answers = [503] * 10
    found = init(command, service.url, "requests", "httpx", "aiohttp", "openai", "urllib")
    assert found["imports"] == {
        "aiohttp": "aiohttp",
        "httpx": "httpx",
        "openai": "openai",
        "requests": "requests",
        "urllib.request:urlopen": "urllib",
    }
    assert {name: each["retry"] for name, each in found["policies"].items()} == {
        "aiohttp": 3,
        "httpx": 3,
        "openai": 3,
        "requests": 4,  # a quarter of the requests failed
        "urllib": 3,
    }
    assert found["policies"]["requests"]["timeout"] == {"attempt": "5s", "total": "15s"}
    assert "40 requests, 10 failed: HTTP 503 ×10." in found["text"]
    assert (
        "25% failed for a reason that passes (HTTP 503 ×10), so with 4 retries about 1 of 1,000 calls fails"
        in (found["text"])
    )
    assert "POST ×1: not idempotent" in found["text"]
    assert f"{service.url.removeprefix('http://')}: 1 request, none failed" in found["text"]


def test_the_program_then_runs_under_these_policies(command: Command, service: Service) -> None:
    service.answers = [503, 200, 503]
    init(command, service.url, "requests")
    service.answers = [503, 200, 503]
    process = start("run", "--config", "new", "app.py", service.url, "requests", directory=command.directory)
    ran = finished(process)
    assert ran.out == f"{[200] * 40}\n"
    assert "opero: requests:clients: calls 40, failures 0, retries 2" in ran.err


def test_a_program_that_fails_has_been_seen_all_the_same(command: Command, service: Service) -> None:
    program = "import os, sys, requests\nrequests.get(sys.argv[1])\nos._exit(3)"
    command.write("app.py", program)
    ran = finished(start("init", "new", "--json", "--from", f"app.py {service.url}", directory=command.directory))
    assert (ran.code, ran.err) == (0, f"warning: app.py {service.url} ended with exit code 3\n")
    host = service.url.removeprefix("http://")
    assert ran.json["clients"] == [
        {"library": "requests", "profile": "requests", "requests": 1, "failures": 0, "hosts": [host]}
    ]


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C in a terminal goes to both processes")
def test_ctrl_c_ends_a_program_that_does_not_end_by_itself(command: Command, service: Service) -> None:
    command.write("app.py", "import sys, time, requests\nrequests.get(sys.argv[1])\ntime.sleep(600)")
    process = start(
        *("init", "new", "--from", f"app.py {service.url}"), directory=command.directory, start_new_session=True
    )
    until = time.monotonic() + 60
    while not service.seen:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.3)  # until it has noted the answer
    os.killpg(process.pid, signal.SIGINT)
    ran = finished(process)
    assert ran.code == 0, ran.err
    assert (command.directory / "new/base.yaml").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("app.py", "app.py has sent no request with aiohttp, anthropic, httpx, httpx2, openai, requests or urllib"),
        ("nowhere.py", "no program 'nowhere.py'"),
        ("app.py '", "is no command line: No closing quotation"),
        ("", "--from requires a program"),
    ],
)
def test_without_requests_nothing_is_written(command: Command, program: str, message: str) -> None:
    command.write("app.py", "print('done')")
    ran = finished(start("init", "new", "--from", program, directory=command.directory))
    assert ran.code == 2
    assert message in ran.err
    assert not (command.directory / "new").exists()


def test_files_that_exist_keep_the_program_from_running(command: Command) -> None:
    command.write("app.py", "open('ran', 'w')")
    ran = finished(start("init", "--from", "app.py", directory=command.directory))
    assert ran.code == 2
    assert "already contains base.yaml; nothing was written" in ran.err
    assert not (command.directory / "ran").exists()


REQUESTS = st.builds(
    Request,
    library=st.sampled_from(["httpx", "openai", "requests", "urllib.request:urlopen"]),
    host=st.sampled_from(["a.example", "b.example:8080"]),
    method=st.sampled_from(["GET", "POST", "put"]),
    started=st.floats(1.7e9, 1.7e9 + 1e6),
    seconds=st.floats(0, 1e5),
    kind=st.sampled_from([None, None, *(each.value for each in Kind)]),
    reason=st.sampled_from(["HTTP 503", "ConnectionError", 'a "reason": # with\n signs']),
    wait=st.none() | st.floats(0, 1e5),
)


@given(st.lists(REQUESTS, min_size=1), st.text())
def test_whatever_was_seen_the_text_is_a_valid_configuration(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Request], program: str
) -> None:
    found: dict[str, list[Request]] = {}
    for each in requests:
        found.setdefault(each.library, []).append(each)
    folder = tmp_path_factory.mktemp("policies")
    (folder / "base.yaml").write_text(policies_text(program, found), "utf-8")
    registry = Registry.load(folder)
    check(registry.configuration, [])
    assert set(registry) == {each.partition(".")[0] for each in found}


def test_a_service_that_throttles_gives_the_rate_that_it_answered(tmp_path: Path) -> None:
    entry = {"library": "httpx", "host": "a", "method": "GET", "seconds": 0.1}
    refused = {"kind": "throttled", "reason": "HTTP 429", "wait": 40.0}
    entries = [{**entry, "started": 10.0 + at / 10, **(refused if at % 4 == 0 else {})} for at in range(100)]
    (tmp_path / "noted").write_text("".join(json.dumps(each) + "\n" for each in entries))
    loaded = yaml.safe_load(policies_text("app.py", read_requests(tmp_path / "noted")))["policies"]["httpx"]
    assert loaded["rate_limit"] == "7/s"
    assert loaded["retry"] == {"retries": 4, "max_delay": "45s"}
    assert loaded["timeout"] == {"attempt": "5s", "total": "60s"}


def test_a_profile_of_several_hosts_has_a_circuit_for_each() -> None:
    requests = [Request("httpx", host, "GET", 1.0, 0.1) for host in ("a", "b")]
    text = policies_text("app.py", {"httpx": requests})
    assert yaml.safe_load(text)["policies"]["httpx"]["circuit_breaker"] == 5  # by host, as under all clients
    assert "# After five calls of a host in a row that fail" in text


def test_a_library_of_functions_that_sent_a_post_is_not_bound() -> None:
    requests = [Request("urllib.request:urlopen", "a", method, 1.0, 0.1) for method in ("GET", "POST")]
    text = policies_text("app.py", {"urllib.request:urlopen": requests})
    assert yaml.safe_load(text)["imports"] is None
    assert "has sent POST ×1, which a retry would repeat" in text
