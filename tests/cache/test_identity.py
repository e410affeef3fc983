"""A stored result belongs to one function of one program: real programs that share one store."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import textwrap
import zipapp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opero import CachePolicy, ConfigError, Policy
from opero.cache.identity import Identity

Runs = Callable[..., str]
FETCH = """
from opero import opero

@opero(cache_backend="disk", cache_ttl=None)
def fetch(x):
    return {answer!r}
"""


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    """Run a program with the store that all programs of a test share, and return what it prints."""

    def run(*args: str | Path, cwd: Path = tmp_path, **variables: str) -> str:
        environment = {**os.environ, "OPERO_CACHE_DIR": str(tmp_path / "store"), **variables}
        done = subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), "utf-8")
    return path


def script(path: Path, answer: str, more: str = "") -> Path:
    return write(path, FETCH.format(answer=answer) + more + "\nprint(fetch(1), fetch.stats.cache_hits)\n")


def test_scripts_with_the_same_function_do_not_read_each_others_results(tmp_path: Path, run: Runs) -> None:
    one, other = script(tmp_path / "a/run.py", "a"), script(tmp_path / "b/run.py", "b")
    assert run(one) == "a 0"
    assert run(other) == "b 0"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Wherever it is started, and however its path is written:
    assert run("../a/run.py", cwd=elsewhere) == "a 1"
    assert run("-m", "run", cwd=one.parent) == "a 1"
    (tmp_path / "link").symlink_to(one.parent)
    assert run(tmp_path / "link/run.py") == "a 1"


HELPERS = """
from opero import opero

FACTOR = {factor}

@opero(cache_backend="disk", cache_ttl=None)
def fetch(x):
    return helper(x) + Box().add(x)

def helper(x):
    return x * FACTOR

class Box:
    def add(self, x):
        return x + {added}

print(fetch(1), fetch.stats.cache_hits)
"""


def test_a_script_that_is_edited_does_not_read_its_old_results(tmp_path: Path, run: Runs) -> None:
    path = tmp_path / "run.py"
    script(path, "old")
    assert run(path) == "old 0"
    script(path, "new")
    assert run(path) == "new 0"
    write(path, "\n\n# moved\n" + script(path, "new").read_text())
    assert run(path, PYTHONHASHSEED="1") == "new 1"
    for values, printed in (((1, 1), "3 0"), ((2, 1), "4 0"), ((2, 2), "5 0")):
        write(path, HELPERS.format(factor=values[0], added=values[1]))
        assert run(path) == printed, values


def test_projects_with_the_same_module_do_not_read_each_others_results(tmp_path: Path, run: Runs) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "api.py", FETCH.format(answer=name))
        write(tmp_path / name / "main.py", "import api\nprint(api.fetch(1), api.fetch.stats.cache_hits)")
    assert run(tmp_path / "one/main.py") == "one 0"
    assert run(tmp_path / "two/main.py") == "two 0"
    write(tmp_path / "one/other.py", "import api\nprint(api.fetch(1), api.fetch.stats.cache_hits)")
    assert run(tmp_path / "one/other.py") == "one 1"  # a web server and its workers share


IN_WORKERS = """
import sys
from opero import opero, opmap

RATE = 3

def helper(x):
    return x * RATE

@opero(cache_backend="disk", cache_ttl=None)
def price(x):
    return helper(x)

@opmap(mode="process", workers=2, progress=False)
def work(x):
    price(x)
    return price.stats.cache_hits

def again(x):
    return price(x), price.stats.cache_hits

if __name__ == "__main__":
    if sys.argv[1] == "parent":
        price(1)
        print(work([1]))
    else:
        import multiprocessing
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(again, [1]))
"""


def test_a_function_of_a_script_is_the_same_one_in_worker_processes(tmp_path: Path, run: Runs) -> None:
    path = write(tmp_path / "run.py", IN_WORKERS)
    assert run(path, "parent") == "[1]"
    assert run(path, "spawn") == "[(3, 1)]"


def test_a_zip_application_keeps_its_results(tmp_path: Path, run: Runs) -> None:
    write(tmp_path / "app/api.py", FETCH.format(answer="zipped"))
    write(tmp_path / "app/__main__.py", "import api\nprint(api.fetch(1), api.fetch.stats.cache_hits)")
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    assert run(tmp_path / "app.pyz") == "zipped 0"
    assert run(tmp_path / "app.pyz", cwd=tmp_path / "app") == "zipped 1"


def test_code_without_a_file_is_told_apart_by_its_working_directory_and_its_code(tmp_path: Path, run: Runs) -> None:
    def code(answer: str) -> str:
        return f"{FETCH.format(answer=answer)}\nprint(fetch(1), fetch.stats.cache_hits)"

    (tmp_path / "other").mkdir()
    assert run("-c", code("a")) == "a 0"
    assert run("-c", code("a"), cwd=tmp_path / "other") == "a 0"
    assert run("-c", code("a")) == "a 1"


def identity(function: Any, **options: Any) -> str:
    on_network = options.pop("on_network", False)
    return Identity(function, CachePolicy(**options), on_network=on_network).text


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Import a module of this text."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # else an edit of the same length, within a second, is missed

    def load(text: str, name: str = "loaded", folder: str = "program") -> Any:
        path = write(tmp_path / folder / f"{name}.py", text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        from opero.cache.identity import _definitions

        _definitions.cache_clear()
        return module

    return load


TWICE = """
import functools

def passing(function):
    @functools.wraps(function)
    def wrapper(x):
        return function(x)
    return wrapper

def scaled(by):
    def decorator(function):
        @functools.wraps(function)
        def wrapper(x):
            return function(x) * by
        return wrapper
    return decorator

def once(x):
    return x

def redefined(x):
    return x
first = redefined
def redefined(x):
    return -x

if FLAG:
    def conditional(x):
        return 1
else:
    def conditional(x):
        return 2

class Client:
    def get(self, x):
        return x
Before = Client
class Client:
    def get(self, x):
        return -x

class Server:
    def get(self, x):
        return x

plain, doubled, tripled = passing(once), scaled(2)(once), scaled(3)(once)
"""


def test_functions_of_one_module_with_the_same_qualified_name_are_different_ones(load: Any) -> None:
    module = load(TWICE.replace("FLAG", "bool(1)"))
    functions = [module.once, module.first, module.redefined, module.conditional, module.Before.get]
    functions += [module.Client.get, module.Server.get, module.plain, module.doubled, module.tripled]
    names = [identity(each) for each in functions]
    assert len(set(names)) == len(names)
    again = load(TWICE.replace("FLAG", "bool(0)"))
    assert identity(again.once) == names[0]
    assert identity(again.doubled) == names[8]
    assert identity(again.conditional) not in names


def test_lambdas_and_local_functions_are_told_apart_by_their_code_and_what_they_close_over(load: Any) -> None:
    module = load("""
        in_set, other = lambda x: x in {"a", "b", "c"}, lambda x: x in {"a", "b", "d"}
        def make(base, key=len):
            def local(x):
                return base + key(x)
            return local
        def short(x):
            return 0
        by_len, by_short = make(1), make(1, short)
        made = [make(1), make(2), make([1]), make([2]), by_short, in_set, other]
    """)
    names = [identity(each) for each in module.made]
    assert len(set(names)) == len(names)
    assert identity(module.by_len) == names[0]


def test_edits_elsewhere_in_a_module_do_not_change_a_function(load: Any) -> None:
    text = "class A:\n    def f(self, x):\n        return x\nlocal = (lambda n: lambda x: x + n)(1)\n"
    before = load(text)
    names = identity(before.A.f), identity(before.local)
    after = load(f"import os\n\n\ndef new():\n    pass\n\n\n{text}")
    assert (identity(after.A.f), identity(after.local)) == names


def test_the_options_that_make_an_identity_each_count(load: Any) -> None:
    module = load("def f(x):\n    return g(x)\ndef g(x):\n    return 1\n")
    given: list[dict[str, Any]] = [
        {},
        {"app": "a"},
        {"app": "b"},
        {"version": 1},
        {"version": 2},
        {"version": 2, "app": "a"},
        {"follow_code": True},
        {"follow_code": True, "app": "a"},
        {"on_network": True},
    ]
    names = [identity(module.f, **options) for options in given]
    assert len(set(names[:-1])) == len(names) - 1
    assert names[8] == names[6]  # without the name of a program, code tells programs in a network store apart
    assert identity(module.f, app="a:b#c d") == "loaded.f@a%3Ab%23c%20d"
    edited = load("def f(x):\n    return g(x)\ndef g(x):\n    return 2\n")
    follows = [options.get("follow_code", False) or "on_network" in options for options in given]
    assert [identity(edited.f, **options) != name for options, name in zip(given, names, strict=True)] == follows
    copy = load("def f(x):\n    return g(x)\ndef g(x):\n    return 1\n", folder="copy")
    assert [identity(copy.f, **options) == name for options, name in zip(given, names, strict=True)] == [
        "app" in options for options in given
    ]


def test_a_program_with_a_name_is_told_by_it_in_a_network_store(load: Any, tmp_path: Path, caplog: Any) -> None:
    unnamed = load("def f(x):\n    return 1\n", folder="nameless")
    identity(unnamed.f)
    assert not caplog.messages
    identity(unnamed.f, on_network=True)
    identity(unnamed.f, on_network=True)
    (line,) = caplog.messages
    assert "set cache.app, or the variable OPERO_CACHE_APP" in line
    identity(unnamed.f, on_network=True, app="shop")
    write(tmp_path / "named/pyproject.toml", "[project]\nname = 'shop'\n")
    named = load("def f(x):\n    return 1\n", folder="named")
    before = identity(named.f, on_network=True)
    assert before.startswith("loaded.f@shop-")
    assert before == identity(named.f) == identity(load("def f(x):\n    return 2\n", folder="named").f, on_network=True)
    assert len(caplog.messages) == 1


def test_following_code_that_is_not_python_is_refused() -> None:
    for function in (len, functools.partial(max, 1)):
        with pytest.raises(ConfigError, match=r"cache\.follow_code has no effect, .* set cache\.version"):
            Policy(cache={"backend": "disk", "ttl": 1, "follow_code": True}).apply(function)


def test_a_local_function_is_told_by_what_it_closes_over_when_it_is_bound(load: Any) -> None:
    module = load("def make():\n    runs = []\n    def local(x):\n        runs.append(x)\n    return local, runs\n")
    (one, runs), (other, _) = module.make(), module.make()
    before = Identity(one, CachePolicy())
    runs.append(1)
    assert before.text == identity(other) != identity(one)
