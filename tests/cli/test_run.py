"""`opero run` binds what `imports:` names in a program that knows nothing of opero, in all its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from threading import Thread
from typing import Any

import psutil
import pytest

from cli.conftest import Command, environment

POLICIES = """
    policies:
      api: {retry: {retries: 4, min_delay: 1ms}}
      none: {retry: {retries: 0}}
    imports:
      "clients:*": api
      "clients:Client.fetch": api
"""
CLIENTS = """
    import itertools
    from opero import opero

    numbers = itertools.count(1)

    def fetch(word):
        if next(numbers) % 3:
            raise ConnectionError("busy")
        return word

    async def later(word):
        return fetch(word)

    @opero(policy="none")
    def decorated(): ...

    def _private(): ...

    class Client:
        def fetch(self, word):
            return fetch_once(word)

    def fetch_once(word):
        return word
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "base.yaml").write_text(dedent(POLICIES))
    (tmp_path / "clients.py").write_text(dedent(CLIENTS))
    return tmp_path


def opero(folder: Path, *arguments: str, program: str | None = None, **variables: str) -> Any:
    if program is not None:
        (folder / "app.py").write_text(dedent(program))
    return subprocess.run(
        [sys.executable, "-m", "opero", "run", *arguments],
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_program_runs_as_by_itself_with_its_functions_bound(folder: Path) -> None:
    ran = opero(
        folder,
        *("app.py", "--verbose", "-x"),
        program="""
            import asyncio, sys
            from clients import Client, decorated, fetch, later, _private
            import clients
            print(sys.argv, __name__, fetch("word"), asyncio.run(later("late")), Client().fetch("own"))
            print([hasattr(each, "binding") for each in (fetch, later, Client.fetch, clients.fetch_once, _private)])
            print(fetch.policy.retry.retries, decorated.policy.retry.retries, fetch.__module__, fetch.__name__)
            sys.exit(7)
        """,
    )
    assert ran.returncode == 7, ran.stderr
    assert ran.stdout.splitlines() == [
        "['app.py', '--verbose', '-x'] __main__ word late own",
        "[True, True, True, True, False]",
        "4 0 clients fetch",
    ]
    assert sorted(ran.stderr.splitlines()) == [
        "opero: clients:Client.fetch: calls 1, failures 0",
        "opero: clients:fetch: calls 2, failures 0, retries 4",
        "opero: clients:fetch_once: calls 1, failures 0",
        "opero: clients:later: calls 1, failures 0",
    ]


def test_a_module_and_a_command_run_too(folder: Path) -> None:
    code = "from clients import fetch; print(fetch('word'))"
    (folder / "app.py").write_text(code)
    assert opero(folder, "-m", "app").stdout == "word\n"
    assert opero(folder, "python", "-c", code).stdout == "word\n"


def test_processes_that_it_starts_take_part(folder: Path) -> None:
    ran = opero(
        folder,
        "app.py",
        program="""
            import multiprocessing, os, subprocess, sys
            from clients import fetch

            if __name__ == "__main__":
                subprocess.run([sys.executable, "-c", "from clients import fetch; print(fetch('apart'))"], check=True)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(pool.map(fetch, ["spawned"]), flush=True)  # or the child that is forked prints it again
                if (child := os.fork()) == 0:
                    print(fetch("forked"), flush=True)
                    sys.exit()
                os.waitpid(child, 0)
        """,
    )
    assert ran.stdout.splitlines() == ["apart", "['spawned']", "forked"], ran.stderr
    assert ran.stderr.count("in process") >= 2


class Busy(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        Busy.asked += 1
        self.send_response(503 if Busy.asked < 3 else 200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *arguments: Any) -> None:
        pass


def test_it_serves_a_program_of_another_package(folder: Path) -> None:
    (folder / "policies" / "base.yaml").write_text(
        dedent("""
            policies: {web: {retry: {retries: 4, min_delay: 1ms}}}
            imports: {"requests:get": web, "clients:fetch": web}
        """)
    )
    Busy.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        ran = opero(folder, "app.py", program=f"from requests import get\nprint(get('{url}').text)")
        server.shutdown()
    assert ran.stdout == "here\n", ran.stderr
    assert ran.stderr.splitlines() == [
        "opero: requests:get: calls 1, failures 0, retries 2",
        "opero: not imported in this process: clients",
    ]


@pytest.mark.skipif(os.name != "posix", reason="a server that forks")
def test_the_workers_of_a_forking_server_take_part(folder: Path) -> None:
    (folder / "web.py").write_text(
        dedent("""
            from clients import fetch

            def app(environ, start_response):
                start_response("200 OK", [])
                return [fetch(environ["PATH_INFO"]).encode()]
        """)
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "opero", "run", "gunicorn", "web:app", "--workers", "2", "--bind", "unix:web.sock"],
        cwd=folder,
        env=environment() | {"HOME": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 60
        while len(psutil.Process(server.pid).children()) < 2 or not (folder / "web.sock").exists():
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        for _ in range(4):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(folder / "web.sock"))
                client.sendall(b"GET /page HTTP/1.0\r\n\r\n")
                answer = b""
                while part := client.recv(4096):
                    answer += part
                assert answer.endswith(b"/page")
    finally:
        server.send_signal(signal.SIGTERM)
        errors = server.communicate(timeout=60)[1]
    assert "opero: clients:fetch in process" in errors


def test_the_environment_and_the_folder_may_be_named(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "base.yaml").write_text('policies: {api: {retry: 1}}\nimports: {"clients:fetch": api}')
    (folder / "elsewhere" / "production.yaml").write_text(
        'policies: {api: {retry: 5}}\nimports: {"clients:fetch": null}'
    )
    (folder / "elsewhere" / "staging.yaml").write_text("policies: {api: {retry: 6}}")
    show = "import clients; print(clients.fetch.policy.retry.retries)"
    assert opero(folder, "--config", "elsewhere", "--env", "staging", "app.py", program=show).stdout == "6\n"
    ran = opero(folder, "--config", "elsewhere", "--env", "production", "app.py")
    assert ran.returncode == 2
    assert "nothing to bind" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "no program 'nowhere.py' in"),
        (["nocommand"], "no program 'nocommand': use a file that ends with .py, -m MODULE, or a command in PATH"),
        (["-m"], "-m requires the name of a module"),
        ([], "Missing argument"),
    ],
)
def test_a_program_that_does_not_exist_is_named(folder: Path, arguments: list[str], message: str) -> None:
    ran = opero(folder, *arguments)
    assert ran.returncode == 2
    assert message in ran.stderr


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ('{"clients.fetch": api}', 'did you mean "clients:fetch"?'),
        ("{boto3: api}", "no library whose clients opero knows: use one of aiohttp, anthropic, httpx, httpx2, openai,"),
        ("{httpx: apy}", "imports: httpx uses the profile 'apy', which does not exist; did you mean 'api'?"),
        ("{httpx: cached}", "imports: httpx uses the profile 'cached': responses are not cached under a client"),
        ("{requests: keys}", "imports: requests uses the profile 'keys': fallback.arg ('key') names an argument"),
        ('{"clients:fetch": apy}', "uses the profile 'apy', which does not exist; did you mean 'api'?"),
        ('{"clients:fetch": 5}', "must be the name of one profile, not 5"),
        ("[clients]", "`imports:` must be a mapping"),
    ],
)
def test_a_mistake_in_the_file_is_found_before_the_program_starts(command: Command, imports: str, message: str) -> None:
    profiles = "{api: {retry: 1}, cached: {cache: 5m}, keys: {fallback: {arg: key}}}"
    command.policies(base=f"policies: {profiles}\nimports: {imports}\n")
    for arguments in (["run", "app.py"], ["check"]):
        ran = command(*arguments)
        assert ran.code in (1, 2)
        assert message in ran.out + ran.err
        assert "base.yaml:2" in ran.out + ran.err


def test_functions_may_fit_a_profile_to_the_clients_of_a_library(command: Command) -> None:
    command.policies(
        base="""
            policies: {cached: {cache: 5m}}
            imports: {httpx: cached}
            functions: {"httpx:clients": {cache: false}}
        """
    )
    command.write("app.py", "print('ran')")
    assert command("check", "--import", "app").code == 0  # the entry matches what is bound
    ran = opero(command.directory, "app.py")
    assert (ran.returncode, ran.stderr) == (0, "opero: not imported in this process: httpx\n")


def test_a_name_that_the_module_has_not_is_an_error_where_it_is_imported(folder: Path) -> None:
    text = (folder / "policies" / "base.yaml").read_text()
    (folder / "policies" / "base.yaml").write_text(text + '  "clients:fetsch": api\n')
    ran = opero(folder, "app.py", program="import clients")
    assert ran.returncode == 1
    assert "ConfigError: clients:fetsch: clients has no 'fetsch'; did you mean 'fetch'?" in ran.stderr


def test_the_sitecustomize_of_the_program_runs_as_well(folder: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("print('customized')")
    variables = {"PYTHONPATH": os.pathsep.join([str(folder / "site"), environment()["PYTHONPATH"]])}
    ran = opero(folder, "app.py", program="from clients import fetch; print(fetch('word'))", **variables)
    assert ran.stdout.splitlines()[-2:] == ["customized", "word"]


def test_show_has_what_is_bound(command: Command) -> None:
    command.policies(base=POLICIES)
    shown = command("show").out
    assert "imports:\n  clients:*: api\n  clients:Client.fetch: api\n" in shown
    command.policies(base=shown)
    assert command("show").out == shown
    assert command("show", "--json").json["imports"] == {"clients:*": "api", "clients:Client.fetch": "api"}
