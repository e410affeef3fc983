"""`opero migrate` and `python -m opero.migrate`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Command, environment

CLIENT = """\
    import tenacity
    from tenacity import retry, stop_after_attempt


    class Busy(Exception): ...


    @retry(stop=stop_after_attempt(3), reraise=True, retry=tenacity.retry_if_exception_type((Busy, OSError)))
    def fetch(): ...


    class Client:
        @retry(stop=stop_after_attempt(3), reraise=True, retry=tenacity.retry_if_exception_type(OSError))
        async def get(self): ...

        @property
        @retry(stop=stop_after_attempt(3), reraise=True, retry=tenacity.retry_if_exception_type(OSError))
        def state(self): ...
"""


def test_what_would_change_is_shown_and_written_only_with_write(command: Command) -> None:
    path = command.write("app/client.py", CLIENT)
    command.write("app/__init__.py", "")
    source = path.read_text()
    ran = command("migrate", "app")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("# policies/base.yaml\npolicies:\n  client:\n    retry:\n      retries: 2\n")
    assert "\n-@retry(stop=stop_after_attempt(3), reraise=True, retry=" in ran.out
    assert '\n+@opero(policy="client_fetch", retry_on=(Busy, OSError))\n' in ran.out
    assert ran.out.endswith("--write changes the files\n")
    assert path.read_text() == source
    assert "client:" not in (command.directory / "policies/base.yaml").read_text()

    ran = command("migrate", "app", "--write")
    assert ran.code == 0
    assert ran.out.startswith("wrote policies/base.yaml\nwrote app/client.py\n3 functions now have a profile\n")
    assert command("check", "--all-envs", "--import", "app.client").code == 0
    ran = command("migrate", "app", "--write")
    assert (ran.code, ran.out) == (0, "0 functions can have a profile\n")


def test_what_is_left_alone_is_listed_with_file_line_and_reason(command: Command) -> None:
    command.write("app/client.py", "import tenacity\n\n\n@tenacity.retry(before_sleep=print)\ndef fetch(): ...\n")
    command.write("app/broken.py", "import tenacity\ndef (\n")
    ran = command("migrate", "app")
    assert ran.code == 1
    reason = "before_sleep has no equal in a profile; subscribe to the event retry_scheduled, or use the hook on_retry"
    assert f"left alone:\n  app/client.py:4: fetch: {reason}\n  app/broken.py: is not valid Python" in ran.out
    assert "--write" not in ran.out


def test_the_json_of_migrate(command: Command) -> None:
    command.write("client.py", CLIENT)
    command.write("other.py", "import backoff\n\n\n@backoff.on_exception(backoff.expo, OSError)\ndef send(): ...\n")
    ran = command("migrate", "client.py", "other.py", "--name", "users", "--write", "--json")
    assert ran.code == 1
    assert ran.json["written"] == ["policies/base.yaml", "client.py"]
    assert ran.json["profiles"]["users"]["retry"]["retry_on"] == ["OSError"]
    first = ran.json["replaced"][0]
    assert (first["function"], first["line"], first["profile"], first["library"]) == (
        "fetch",
        8,
        "users_fetch",
        "tenacity",
    )
    assert [(each["file"], each["function"]) for each in ran.json["left"]] == [("other.py", "send")]
    assert ran.json["diff"].startswith("--- a/client.py\n+++ b/client.py\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: no such file or directory\n"),
        (
            ["client.py", "--name", "reports"],
            "policies/base.yaml has a profile 'reports' with other values; choose another name by",
        ),
        (["client.py", "--name", 'a"b'], "is not a name for a profile"),
        ([], "Missing argument 'PATH...'"),
    ],
)
def test_what_is_refused_changes_nothing(command: Command, arguments: list[str], message: str) -> None:
    command.write("client.py", CLIENT)
    ran = command("migrate", *arguments, "--write")
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "opero" not in (command.directory / "client.py").read_text()


def test_the_module_is_the_command_and_says_which_extra_it_requires(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text("import stamina\n\n\n@stamina.retry(on=OSError)\ndef fetch(): ...\n")
    (tmp_path / "blocked.py").write_text(
        "import runpy, sys\nsys.modules['libcst'] = None\nsys.argv[1:] = ['client.py']\n"
        "runpy.run_module('opero.migrate', run_name='__main__')\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    ran = run("-m", "opero.migrate", "client.py")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert '+@opero(policy="client")\n' in ran.stdout
    ran = run("blocked.py")
    assert ran.returncode == 2
    assert ran.stderr == "error: the command requires the extra migrate: pip install 'opero[migrate]'\n"
