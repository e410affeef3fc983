"""OPERO_SERVE and OPERO_WATCH switch on without code, when the default registry is first used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import opero
from opero.errors import ConfigError
from opero.integrations.serving import read

PROGRAM = """
    import logging, sys, threading, urllib.request
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    from opero import opero

    @opero(retries=2)
    def work(number):
        return number

    work(1)
"""
WAITING = """
    for line in sys.stdin:
        if not line.strip():
            break
        exec(line)
"""


def start(directory: Path, program: str = PROGRAM + WAITING, **environ: str) -> subprocess.Popen[str]:
    """Start a program, whose standard input is run line by line."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("OPERO_")}
    path = {"PYTHONPATH": str(Path(opero.__file__).parents[1]), "XDG_RUNTIME_DIR": str(directory)}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(program)],
        cwd=directory,
        env=inherited | path | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: subprocess.Popen[str], *lines: str) -> str:
    """Send lines to a program, let it end, and return what it has printed."""
    out, _ = process.communicate("".join(f"{line}\n" for line in lines) + "\n", timeout=120)
    assert process.returncode == 0, out
    return out


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_the_page_is_served_without_code(tmp_path: Path) -> None:
    process = start(tmp_path, OPERO_SERVE="127.0.0.1:0")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("INFO OPERO_SERVE: serving http://127.0.0.1:")
    url = line.split()[-1]
    out = output(process, f"print(urllib.request.urlopen('{url}/state.json').read().decode())")
    assert '"__main__:work"' in out


def test_a_variable_in_the_env_file_counts_as_well(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPERO_SERVE=localhost:0\n")
    assert "INFO OPERO_SERVE: serving http://localhost:" in output(start(tmp_path))


def test_of_several_processes_the_first_is_served_and_the_others_say_so_in_one_line(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    first = start(tmp_path, OPERO_SERVE=address)
    assert first.stdout is not None
    assert "serving" in first.stdout.readline()
    assert output(start(tmp_path, OPERO_SERVE=address)).splitlines() == [
        f"WARNING OPERO_SERVE: {address} is in use, so this process is not served"
    ]
    output(first)


def test_worker_processes_of_a_map_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import opero\n\n\n@opero.opmap(mode='process', workers=2)\ndef double(number):\n    return 2 * number\n"
    )
    program = PROGRAM + "    import job\n    print(job.double([1, 2]))\n"
    out = output(start(tmp_path, program, OPERO_SERVE="127.0.0.1:0", OPERO_WATCH="1"))
    assert "[2, 4]" in out
    assert out.count("OPERO_SERVE") == 1


def test_files_are_watched_and_a_hangup_reloads(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    base = tmp_path / "policies" / "base.yaml"
    base.write_text("policies: {api: {retry: 3}}")
    process = start(tmp_path, OPERO_WATCH="1")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("print('up')\n")
    process.stdin.flush()
    assert process.stdout.readline() == "up\n"
    base.write_text("policies: {api: {retry: 4}}")
    assert process.stdout.readline() == "INFO configuration: reloaded (a file has changed): api\n"
    base.write_text("policies: {api: {retry: many}}")
    assert process.stdout.readline().startswith("ERROR configuration: not reloaded (a file has changed)")
    if hasattr(signal, "SIGHUP"):
        process.send_signal(signal.SIGHUP)  # does not end it
    output(process)


def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    program = """
        import logging, sys
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        from opero import Registry, get_default_registry, set_default_registry
        set_default_registry(Registry({}))
        get_default_registry()
    """
    out = output(start(tmp_path, program, OPERO_WATCH="yes"))
    assert out.startswith("OPERO_WATCH: nothing is watched: this registry was ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "OPERO_SERVE",
            "nine",
            "OPERO_SERVE: 'nine' is invalid: use an address and a port, such as 127.0.0.1:9300, or off",
        ),
        ("OPERO_SERVE", "127.0.0.1:99999", "OPERO_SERVE: '127.0.0.1:99999' is invalid"),
        ("OPERO_SERVE", "http://localhost:9300", "OPERO_SERVE: 'http://localhost:9300' is invalid"),
        ("OPERO_WATCH", "2", "OPERO_WATCH: '2' is invalid: use true or false"),
    ],
)
def test_invalid_values_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        read()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("9300", ("127.0.0.1", 9300)),
        (":9300", ("127.0.0.1", 9300)),
        (" 0.0.0.0:80 ", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
        ("off", None),
        ("", None),
        ("false", None),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, address: object) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPERO_SERVE", value)
    assert read().serve == address
