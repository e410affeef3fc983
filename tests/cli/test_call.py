"""`opero call`."""

from __future__ import annotations

import json
import re
import signal

import pytest

from cli.conftest import Command, finished, start
from opero.cli.exits import UsageError
from opero.cli.functions import parse_pairs

MODULE = """\
    import os
    from dataclasses import dataclass
    from opero import opero

    CALLS = []

    @dataclass
    class User:
        name: str
        age: int

    def echo(*args, **kwargs):
        return [args, kwargs]

    def user(name: str, age: int = 3):
        print("looking for", name)
        os.write(1, b"from below\\n")
        return User(name, age)

    async def user_async(name):
        return User(name, 1)

    def count(to):
        yield from range(to)

    async def count_async(to):
        for number in range(to):
            yield number

    def flaky():
        CALLS.append(1)
        if len(CALLS) < 3:
            raise ConnectionError("no line")
        return len(CALLS)

    def broken():
        raise ValueError("nothing there")

    @opero(policy="api", retries=1)
    def bound():
        return broken()

    class Service:
        def method(self):
            return 1
        @staticmethod
        def static(x):
            return x
        @classmethod
        def of_class(cls, x):
            return f"{cls.__name__} {x}"
        @opero(retries=1)
        def bound(self, x):
            return x + 1

    service = Service()
    NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _module(command: Command) -> None:
    command.write("app.py", MODULE)


def test_arguments_are_parsed_as_json_or_else_text(command: Command) -> None:
    ran = command("call", "app:echo", "1", "true", '"1"', "ada", "[1, 2]", "--kw", "a=null", "--kw", "b=x=y")
    assert ran.code == 0
    assert json.loads(ran.out) == [[1, True, "1", "ada", [1, 2]], {"a": None, "b": "x=y"}]


def test_arguments_that_begin_with_a_dash_follow_two_dashes(command: Command) -> None:
    assert command("call", "math:pow", "--", "2", "-1").out == "0.5\n"


def test_output_of_the_function_goes_to_stderr(command: Command) -> None:
    ran = finished(start("call", "app:user", "ada", directory=command.directory))
    assert ran.code == 0
    assert ran.out == '{"name": "ada", "age": 3}\n'
    assert sorted(ran.err.splitlines()) == ["from below", "looking for ada"]


def test_async_functions_and_generators_run_to_completion(command: Command) -> None:
    assert command("call", "app:user_async", "bob").out == '{"name": "bob", "age": 1}\n'
    assert command("call", "app:count", "3").out == "0\n1\n2\n"
    assert command("call", "app:count_async", "2").out == "0\n1\n"
    assert command("call", "app:count_async", "2", "--json").json["result"] == [0, 1]


@pytest.mark.parametrize(
    ("target", "result"),
    [("Service.static", 5), ("Service.of_class", "Service 5"), ("service.of_class", "Service 5"), ("service.bound", 6)],
)
def test_static_class_and_bound_methods_can_be_called(command: Command, target: str, result: object) -> None:
    assert command("call", f"app:{target}", "5", "--json").json["result"] == result


def test_the_call_runs_under_the_profile(command: Command) -> None:
    ran = command("call", "app:flaky", "--policy", "api", "--json")
    assert ran.json == {"function": "app:flaky", "result": 3, "stats": ran.json["stats"]}
    assert ran.json["stats"]["retries"] == 2


def test_options_override_the_profile(command: Command) -> None:
    ran = command("call", "app:flaky", "--policy", "api", "--set", "retries=1")
    assert ran.code == 1
    assert "caused by ConnectionError: no line" in ran.err


def test_options_override_the_functions_own_policy(command: Command) -> None:
    assert command("call", "app:bound", "--json").json["stats"]["attempts"] == 2
    assert command("call", "app:bound", "--json", "--set", "retries=3").json["stats"]["attempts"] == 6  # 2 before


def test_the_environment_applies_to_the_profile_of_a_decorator(command: Command) -> None:
    command.policies(production="policies:\n  api:\n    fallback: {default: saved}\n")
    assert command("call", "app:bound", "--env", "production").out == '"saved"\n'


def test_without_a_policy_there_are_no_retries(command: Command) -> None:
    ran = command("call", "app:flaky")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: app:flaky failed: ConnectionError: no line\n"


def test_a_multi_line_error_is_printed_on_one_line_and_unchanged_in_json(command: Command) -> None:
    command.write("lines.py", 'def fail():\n    raise ValueError("first\\n  second\\n")\n')
    assert command("call", "lines:fail").err == "error: lines:fail failed: ValueError: first second\n"
    assert command("call", "lines:fail", "--json").json["error"]["message"] == "first\n  second\n"


def test_the_json_of_a_failed_map_has_the_exception_of_its_first_failed_item(command: Command) -> None:
    command.write(
        "maps.py",
        """\
        from opero import opmap

        @opmap(mode="thread", workers=1)
        def double(number: int) -> int:
            return 2 // number

        def both():
            return double([1, 0])
        """,
    )
    ran = command("call", "maps:both", "--json")
    assert ran.json["error"]["type"] == "MapError"
    assert ran.json["error"]["cause"]["type"] == "ZeroDivisionError"


def test_the_json_of_a_failure(command: Command) -> None:
    ran = command("call", "app:bound", "--json")
    assert ran.code == 1
    assert ran.json.keys() == {"function", "error", "stats"}
    assert ran.json["error"]["type"] == "AllFailedError"
    assert ran.json["error"]["cause"] == {"type": "ValueError", "message": "nothing there"}


def test_passwords_in_urls_of_errors_are_masked(command: Command) -> None:
    command.write(
        "db.py",
        """\
        def connect(x=None):
            raise ConnectionError("cannot connect to redis://user:hunter2@host/0")
        """,
    )
    command.write("n.txt", "1\n")
    for arguments in (
        ["call", "db:connect"],
        ["call", "db:connect", "--json"],
        ["call", "db:connect", "--set", "retries=1", "--set", "min_delay=0"],
        ["map", "db:connect", "n.txt", "--mode", "thread"],
        ["map", "db:connect", "n.txt", "--mode", "thread", "--on-error", "raise"],
        ["tune", "db:connect", "n.txt"],
    ):
        ran = command(*arguments)
        assert ran.code == 1
        assert "redis://***@host/0" in ran.out + ran.err, arguments
        assert "hunter2" not in ran.out + ran.err, arguments
    command.write("worse.py", "raise ConnectionError('redis://user:hunter2@host/0')\n")
    assert "ConnectionError: redis://***@host/0" in command("call", "worse:f").err


def test_lists_are_split_at_commas_as_in_variables(command: Command) -> None:
    ran = command(
        "call", "app:flaky", "--json", "--set", "retry_on=ConnectionError, TimeoutError", "--set", "retries=3"
    )
    assert (ran.code, ran.json["stats"]["retries"]) == (0, 2)
    assert command("call", "app:echo", "--set", "retry_on_status=429,5xx", "--set", "cache_tags=a,b").code == 0


def test_why_prints_what_happened_to_the_call(command: Command) -> None:
    ran = command("call", "app:flaky", "--policy", "api", "--why")
    head, *lines = ran.err.splitlines()
    assert ": 1 call in " in head
    told = [re.sub(r"[\d.]+ (ms|s)\b", "…", line[11:]) for line in lines]
    assert told == [
        "app:flaky [api]",
        "  cache: miss",
        "  attempt 1 failed after …: transient: ConnectionError: no line",
        "  round 2 in … (backoff)",
        "  attempt 2 failed after …: transient: ConnectionError: no line",
        "  round 3 in … (backoff)",
        "  succeeded after …",
    ]
    ran = command("call", "app:broken", "--set", "retries=0", "--json", "--why")
    [call] = ran.json["receipt"]["steps"]
    [attempt] = call["steps"]
    assert (call["function"], call["outcome"]) == ("app:broken", "failed")
    assert (attempt["kind"], attempt["reason"], attempt["error"]) == (
        "unknown",
        "ValueError",
        {"type": "ValueError", "message": "nothing there"},
    )


def test_why_says_what_the_profile_states(command: Command) -> None:
    failures = '{"transient": ["ValueError"]}'
    ran = command("call", "app:broken", "--set", "retries=0", "--set", f"failures={failures}", "--why")
    assert "attempt 1 failed after " in ran.err
    assert ": transient (ValueError, stated in failures): ValueError: nothing there\n" in ran.err


def test_stats_are_printed_on_stderr(command: Command) -> None:
    ran = command("call", "app:flaky", "--policy", "api", "--stats")
    assert ran.out == "3\n"
    assert "attempts: 3\n" in ran.err
    assert "errors: {'ConnectionError': 2}\n" in ran.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_interrupt_a_call(command: Command, number: int, code: int) -> None:
    command.write("slow.py", "import time\ndef wait():\n    print('waiting', flush=True)\n    time.sleep(60)\n")
    process = start("call", "slow:wait", directory=command.directory)
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    process.send_signal(number)
    ran = finished(process)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err == "error: interrupted\n"


def test_sigterm_terminates_a_process_that_the_function_forked(command: Command) -> None:
    command.write(
        "forking.py",
        """\
        import os, signal, time
        def fork():
            ready, started = os.pipe()
            if (child := os.fork()) == 0:
                os.write(started, b"1")
                for _ in range(300):
                    time.sleep(0.1)
                os._exit(1)
            os.read(ready, 1)
            os.kill(child, signal.SIGTERM)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        """,
    )
    ran = finished(start("call", "forking:fork", directory=command.directory))
    assert (ran.code, ran.out, ran.err) == (0, f"{-signal.SIGTERM}\n", "")


def test_a_function_that_calls_sys_exit_has_failed(command: Command) -> None:
    command.write("n.txt", "1\n")
    for arguments in (["call", "sys:exit", "3"], ["map", "sys:exit", "n.txt", "--mode", "thread"]):
        ran = command(*arguments)
        assert (ran.code, ran.out) == (1, "")
        assert "sys:exit raised SystemExit(" in ran.err
    command.write("program.py", "import sys\nsys.exit(3)\n")
    ran = command("call", "program:main")
    assert ran.code == 2
    assert "cannot import module 'program': SystemExit: 3" in ran.err


def test_debug_shows_the_functions_own_traceback(command: Command) -> None:
    ran = command("call", "app:broken", "--debug")
    assert "in broken" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app:user"], "app:user(name: str, age: int = 3) missing a required argument: 'name'"),
        (["app:usr", "x"], "app has no attribute 'usr'; did you mean 'user'?"),
        (["app.user", "x"], "'app.user' is invalid: use module:function, such as app.users:get_user; did you mean"),
        (["app:NUMBER"], "app:NUMBER is not a function: it is 3"),
        (["app:Service.method"], "app:Service.method is a method and requires an instance"),
        (["app:Service.bound", "1"], "app:Service.bound is a method and requires an instance"),
        (["nowhere:f"], "no module 'nowhere' in "),
        (["app:echo", "--kw", "x"], "--kw 'x' is invalid: use name=value"),
        (["app:echo", "--kw", "x=1", "--kw", "x=2"], "--kw 'x' is given twice"),
        (["app:echo", "--set", "retrie=1"], "unknown option 'retrie'; did you mean 'retries'?"),
        (["app:echo", "--set", "retries=-1"], "retries: -1 should be greater than or equal to 0"),
        (["app:echo", "--policy", "ap"], "no profile 'ap'"),
        (["app:user", "ada", "--set", "arg_fallback=key"], "'key'"),
    ],
)
def test_an_invalid_call_is_a_usage_error(command: Command, arguments: list[str], message: str) -> None:
    ran = command("call", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_the_error_for_a_module_that_cannot_be_imported(command: Command) -> None:
    command.write("bad.py", "1 / 0\n")
    ran = command("call", "bad:f")
    assert ran.code == 2
    assert "cannot import module 'bad': ZeroDivisionError: division by zero" in ran.err
    command.write("worse.py", "import nothing_like_that\n")
    assert "cannot import module 'worse': No module named 'nothing_like_that'" in command("call", "worse:f").err


def test_a_long_pair_of_separators_is_shortened_in_the_error() -> None:
    with pytest.raises(UsageError) as caught:
        parse_pairs(["\u2028" * 1000], "--arg")
    assert len(str(caught.value)) < 2000
