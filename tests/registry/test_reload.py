"""Reloading: everything is validated first, and then holds at once, for every function that is bound."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from opero import CircuitOpenError, ConfigError, Policy, Registry, RetryPolicy, opero, opmap
from opero.binding.binding import Binding
from opero.executors.bulkhead import BulkheadExecutor
from opero.registry.profile_state import SharedExecutors
from opero.testing import VirtualClock


class Files:
    """A directory of policies, and a registry that was loaded from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ: dict[str, str] = {}

    def write(self, text: str, name: str = "base") -> None:
        (self.directory / f"{name}.yaml").write_text(text, "utf-8")

    def load(self, text: str) -> Registry:
        self.write(text)
        return Registry.load(self.directory, environ=self.environ)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def one() -> int:
    return 1


def two() -> int:
    return 2


def broken() -> int:
    raise ConnectionError("down")


def test_reload_changes_policies_and_bound_functions(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}, db: {retry: 2}}")
    bound = registry.bind(one, "api")
    late = opero(policy="api", registry=registry)(two)
    files.write("policies: {api: {retry: 5}, db: {retry: 2}, new: }")
    changes = registry.reload()
    assert registry["api"] == bound.policy == late.policy == Policy(retry=5)
    assert "new" in registry
    assert changes.profiles == ("api", "new")
    assert changes.functions == (f"{__name__}:one", f"{__name__}:two")
    assert not registry.reload()


def test_counts_continue_over_reloads(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}}")
    bound = registry.bind(one, "api")
    bound()
    stats = bound.stats
    files.write("policies: {api: {retry: 5, cache: 30m}}")
    registry.reload()
    bound()
    assert bound.stats is stats
    assert stats.calls == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("policies: {api: {retyr: 1}}", "unknown key 'retyr'"),
        ("policies: {api: {retry: {retries: -1}}}", "retries"),
        ("policies: {db: {retry: 1}}", "is bound to the profile 'api', which does not exist"),
        ("policies: {api: {fallback: {arg: key}}}", "no parameter 'key'"),
        ("policies: {api: ", "is not valid YAML"),
        ('policies: {api: }\nfunctions: {"*": {policy: apj}}', "apj"),
    ],
)
def test_an_invalid_file_changes_nothing(files: Files, bad: str, said: str) -> None:
    registry = files.load("policies: {api: {retry: 1}, other: {retry: 1}}")
    bound, other = registry.bind(one, "api"), registry.bind(two, "other")
    before = registry.configuration, bound.binding.pipeline, other.binding.pipeline
    files.write(bad)
    for _ in range(2):
        with pytest.raises(ConfigError, match=said):
            registry.reload()
    assert (registry.configuration, bound.binding.pipeline, other.binding.pipeline) == before


def test_a_function_that_never_fit_does_not_block_a_reload(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}}")
    bound = registry.bind(one, "api")
    lost = opero(policy="apj", registry=registry)(two)
    files.write("policies: {api: {retry: 2}}")
    assert registry.reload().profiles == ("api",)
    assert bound.policy == Policy(retry=2)
    with registry.override(api={"retry": 3}):
        assert bound.policy == Policy(retry=3)
    with pytest.raises(ConfigError, match="apj"):
        lost()


def test_a_reload_cannot_remove_a_profile_that_a_function_names(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}}")
    late = opero(policy="api", registry=registry)(two)
    files.write("policies: {db: {retry: 2}}")
    with pytest.raises(ConfigError, match="profile 'api', which does not exist"):
        registry.reload()
    assert late() == 2


def test_variables_are_read_again(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}}")
    files.environ["OPERO_API_RETRIES"] = "7"
    registry.reload()
    assert registry["api"].retry == RetryPolicy(retries=7)


def test_a_reload_reads_the_same_directory_after_chdir(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies").mkdir()
    files.directory = tmp_path / "policies"
    files.write("policies: {api: {retry: 1}}")
    monkeypatch.chdir(tmp_path)
    registry = Registry.load(environ={})
    monkeypatch.chdir("/")
    files.write("policies: {api: {retry: 2}}")
    registry.reload()
    assert registry["api"] == Policy(retry=2)


@pytest.mark.parametrize("named", [True, False])
def test_a_reload_reads_the_same_variable_files_after_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policies").mkdir()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 1}}")
    (tmp_path / ".env").write_text("OPERO_API_RETRIES=2")
    (tmp_path / "secrets" / "OPERO_API_CACHE_TTL").write_text("5m")
    monkeypatch.setenv("OPERO_SECRETS_DIR", "secrets")
    registry = Registry.load(env_file=".env") if named else Registry.load()
    paths = registry.watched_paths()
    monkeypatch.chdir("/")
    assert not registry.reload()
    assert registry["api"] == Policy(retry=2, cache="5m")
    assert registry.watched_paths() == paths == [tmp_path / name for name in ("policies", "secrets", ".env")]


def test_a_registry_made_in_code_cannot_be_reloaded() -> None:
    with pytest.raises(ConfigError, match="made from policies in code"):
        Registry({"api": Policy()}).reload()


def test_a_function_follows_its_entry_when_it_is_added_and_removed(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}, db: {retry: 9, bulkhead: 3}}")
    bound = registry.bind(one, "api")
    inline = opero(retries=2, registry=registry)(two)
    assert inline() == 2
    files.write(
        f"policies: {{api: {{retry: 1}}, db: {{retry: 9, bulkhead: 3}}}}\n"
        f'functions: {{"{__name__}:one": {{policy: db}}, "{__name__}:two": {{timeout: 5s}}}}'
    )
    assert registry.reload().functions == (f"{__name__}:one", f"{__name__}:two")
    assert bound.policy == registry["db"]
    assert inline.policy == Policy(retry=2, timeout="5s")
    files.write("policies: {api: {retry: 1}, db: {retry: 9, bulkhead: 3}}")
    registry.reload()
    assert bound.policy == Policy(retry=1)
    assert inline.policy == Policy(retry=2)


def test_functions_share_the_same_state_after_a_reload(files: Files) -> None:
    registry = files.load("policies: {api: {bulkhead: 3, retry: 1}}")
    first, second = registry.bind(one, "api"), registry.bind(two, "api")
    assert (first(), second()) == (1, 2)
    kept = first.binding.pipeline.executors["bulkhead"]
    files.write("policies: {api: {bulkhead: 3, retry: 2}}")
    registry.reload()
    assert first.binding.pipeline.executors["bulkhead"] is second.binding.pipeline.executors["bulkhead"] is kept
    files.write("policies: {api: {bulkhead: 4, retry: 2}}")
    registry.reload()
    assert first.binding.pipeline.executors["bulkhead"] is second.binding.pipeline.executors["bulkhead"]
    third = registry.bind(one, "api")
    assert third() == 1
    assert third.binding.pipeline.executors["bulkhead"] is first.binding.pipeline.executors["bulkhead"]


def test_calls_take_no_lock_that_a_reload_holds(files: Files) -> None:
    """Every lock of the registry is held, and files are being read: calls go on, first ones and later ones."""
    registry = files.load("policies: {api: {retry: 1, circuit_breaker: 5}}")
    bound, late = registry.bind(one, "api"), opero(policy="api", registry=registry)(two)
    reading, go_on = threading.Event(), threading.Event()
    read = registry._read

    def slow_read() -> Any:
        reading.set()
        assert go_on.wait(30)
        assert read is not None
        return read()

    registry._read = slow_read
    reloading = threading.Thread(target=registry.reload)
    reloading.start()
    assert reading.wait(30)
    assert registry._changing.acquire(blocking=False) is False
    assert (bound(), late()) == (1, 2)
    go_on.set()
    reloading.join(30)
    assert (bound(), late()) == (1, 2)


def test_a_first_call_during_a_reload_gets_the_new_policy(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = files.load("policies: {api: {retry: 1}, db: }")
    late = opero(policy="api", registry=registry)(one)
    files.write("policies: {api: {retry: 2}, db: {retry: 1}}")
    migrate = SharedExecutors.migrate

    def call_just_then(*args: Any) -> None:
        assert late() == 1
        assert late.policy == Policy(retry=1)
        migrate(*args)

    monkeypatch.setattr(SharedExecutors, "migrate", call_just_then)
    registry.reload()
    assert late.policy == Policy(retry=2)


def breakers(*functions: Any) -> list[Any]:
    return [function.binding.circuit_breaker for function in functions]


@pytest.mark.parametrize("after", ["open_for: 60s", "open_for: 90s"])
@pytest.mark.parametrize("moment", ["asking", "drafted", "giving way"])
def test_a_first_call_during_a_reload_shares_the_profiles_state(
    files: Files, monkeypatch: pytest.MonkeyPatch, after: str, moment: str
) -> None:
    """Whether it asks just before the swap, after the draft was made, or while state changes hands."""
    text = "policies: {api: {circuit_breaker: {consecutive_failures: 1, %s}}%s}"
    registry = files.load(text % ("open_for: 60s", ""))
    early, late = registry.bind(broken, "api"), opero(policy="api", registry=registry)(one)
    with pytest.raises(ConnectionError):
        early()
    asked, go_on = threading.Event(), threading.Event()

    def call() -> None:
        with pytest.raises(CircuitOpenError):
            late()

    caller = threading.Thread(target=call)
    if moment == "asking":
        effective = registry._effective

        def ask_slowly(*args: Any) -> Any:
            found = effective(*args)
            asked.set()
            assert go_on.wait(30)
            return found

        monkeypatch.setattr(registry, "_effective", ask_slowly)
        caller.start()
        assert asked.wait(30)
    else:
        where = SharedExecutors.successor if moment == "drafted" else SharedExecutors.migrate

        def then_call(*args: Any) -> Any:
            result = where(*args)
            caller.start()
            if moment == "drafted":
                caller.join(30)
            return result

        monkeypatch.setattr(SharedExecutors, where.__name__, then_call)
    files.write(text % (after, ", x: "))
    registry.reload()
    go_on.set()
    caller.join(30)
    third = registry.bind(two, "api")
    first, *others = breakers(early, late, third)
    assert all(each.home.successor is first.home.successor for each in others)
    assert first.state == "open"


def test_ctrl_c_during_a_reload_leaves_no_function_on_the_old_configuration(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = files.load("policies: {api: {retry: 1, bulkhead: 3}}")
    bound = [registry.bind(each, "api") for each in (one, two, broken)]
    assert [each.policy.retry.retries for each in bound] == [1, 1, 1]  # which resolves them
    late = opero(policy="api", registry=registry)(one)
    enforce, calls = Binding.enforce, []

    def interrupted(self: Binding, chain: Any) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        enforce(self, chain)

    monkeypatch.setattr(Binding, "enforce", interrupted)
    files.write("policies: {api: {retry: 2, bulkhead: 4}}")
    with pytest.raises(KeyboardInterrupt):
        registry.reload()
    assert [each.policy for each in (*bound, late)] == [Policy(retry=2, bulkhead=4)] * 4


def test_ctrl_c_while_state_migrates_leaves_no_caller_waiting(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = files.load("policies: {api: {retry: 1, bulkhead: 3}}")
    bound, late = registry.bind(one, "api"), opero(policy="api", registry=registry)(two)
    assert bound() == 1

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BulkheadExecutor, "migrate_from", interrupted)
    files.write("policies: {api: {retry: 2, bulkhead: 4}}")
    with pytest.raises(KeyboardInterrupt):
        registry.reload()
    assert (bound(), late()) == (1, 2)


def test_a_first_call_does_not_wait_for_a_migration(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = files.load("policies: {api: {bulkhead: 3}}")
    early, late = registry.bind(one, "api"), opero(policy="api", registry=registry)(two)
    assert early() == 1
    taking_over, go_on = threading.Event(), threading.Event()
    migrate_from = BulkheadExecutor.migrate_from

    def slowly(*args: Any) -> None:
        taking_over.set()
        assert go_on.wait(30)
        migrate_from(*args)

    monkeypatch.setattr(BulkheadExecutor, "migrate_from", slowly)
    files.write("policies: {api: {bulkhead: 4}}")
    reloading = threading.Thread(target=registry.reload)
    reloading.start()
    assert taking_over.wait(30)
    assert (early(), late()) == (1, 2)
    go_on.set()
    reloading.join(30)
    assert early.policy == late.policy == Policy(bulkhead=4)
    assert early.binding.pipeline.executors["bulkhead"] is late.binding.pipeline.executors["bulkhead"]


@pytest.mark.parametrize("bad", ["cache: 1m", "rate_limit: {rate: 5, cost: nosuch}"])
def test_a_reload_rejects_a_policy_that_does_not_fit_an_uncalled_function(files: Files, bad: str) -> None:
    registry = files.load("policies: {api: {retry: 1}}")

    @opero(policy="api", registry=registry)
    def items() -> Any:
        yield 1

    files.write(f"policies: {{api: {{{bad}}}}}")
    with pytest.raises(ConfigError):
        registry.reload()
    assert list(items()) == [1]


def test_an_override_ends_even_if_functions_were_bound_in_it(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    registry = files.load("policies: {api: {retry: 0, cache: 1m}}")

    def items() -> Any:
        yield 1

    with registry.override(api={"cache": None}):
        bound = registry.bind(items, "api")
        assert list(bound()) == [1]
    assert registry["api"].cache is not None
    assert "does not fit" in caplog.text
    with pytest.raises(ConfigError, match="cannot have cache"):
        list(bound())
    with registry.override(api={"cache": None}):
        assert list(bound()) == [1]


def test_a_map_uses_one_configuration_throughout(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 0, parallel: {mode: thread, workers: 1, on_error: return}}}")
    attempts: list[int] = []

    def fail(item: int) -> int:
        attempts.append(item)
        if len(attempts) == 2:
            files.write("policies: {api: {retry: {retries: 2, min_delay: 0}, parallel: {mode: thread, workers: 1}}}")
            registry.reload()
        raise ConnectionError

    bound = registry.bind(fail, "api")
    assert all(isinstance(each, ConnectionError) for each in bound.map(range(4)))
    assert attempts == [0, 1, 2, 3]


def test_running_calls_finish_on_the_policy_they_started_with(files: Files) -> None:
    clock = VirtualClock()
    registry = files.load("policies: {api: {retry: {retries: 2, jitter: false}}}")
    calls: list[int] = []

    def fails_while_it_is_reloaded() -> None:
        calls.append(len(calls))
        files.write("policies: {api: {retry: {retries: 0}}}")
        registry.reload()
        raise ConnectionError

    bound = registry.bind(fails_while_it_is_reloaded, "api", clock=clock)
    with pytest.raises(ExceptionGroup):
        bound()
    assert len(calls) == 3
    with pytest.raises(ConnectionError):
        bound()
    assert len(calls) == 4


def test_methods_maps_and_generators_follow_a_reload(files: Files) -> None:
    registry = files.load("policies: {api: {retry: 1}}")

    class Client:
        @opero(policy="api", registry=registry)
        def fetch(self) -> int:
            return 1

        @classmethod
        @opero(policy="api", registry=registry)
        def make(cls) -> int:
            return 2

    @opmap(policy="api", registry=registry, mode="thread")
    def double(item: int) -> int:
        return 2 * item

    @opero(policy="api", registry=registry)
    def items() -> Any:
        yield 1

    def use() -> list[int]:
        client = Client()
        assert (client.fetch(), client.make(), double([1, 2]), list(items())) == (1, 2, [2, 4], [1])
        return [each.policy.retry.retries for each in (Client.fetch, Client.make, double, items)]

    assert use() == [1, 1, 1, 1]
    files.write("policies: {api: {retry: 4}}")
    registry.reload()
    assert use() == [4, 4, 4, 4]


def test_unreferenced_functions_are_forgotten(files: Files) -> None:
    import gc

    registry = files.load("policies: {api: {retry: 1}}")
    for _ in range(3):
        registry.bind(lambda: 1, "api")()
    gc.collect()
    assert registry.bindings() == ()


def test_a_module_that_exits_is_reported_as_not_importable(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_program.py").write_text("import sys\nsys.exit('done')")
    (tmp_path / "a_lazy_program.py").write_text("def __getattr__(name):\n    raise SystemExit(name)")
    monkeypatch.syspath_prepend(tmp_path)
    registry = files.load("policies: {api: {retry: 1}}")
    for name, said in {
        "a_program:Error": "cannot be imported: SystemExit: done",
        "a_program.Error": "cannot be imported: SystemExit: done",
        "a_lazy_program:Error": "importing the module that it names failed: SystemExit: Error",
    }.items():
        with pytest.raises(ConfigError, match=said):
            files.load(f"policies: {{api: {{retry: {{retry_on: ['{name}']}}}}}}")
        with pytest.raises(ConfigError, match=said):
            registry.reload()


def test_a_reload_logs_new_warnings_and_unmatched_entries(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    registry = files.load("policies: {api: {retry: 1}}")
    bound = registry.bind(one, "api")
    files.write(f"policies: {{api: {{retry: 1}}}}\nfunctions: {{'{__name__}:one': {{}}, '{__name__}:on': {{}}}}")
    os.chmod(files.directory, 0o777)  # that is what it warns of
    registry.reload()
    writable, unmatched = (record.getMessage() for record in caplog.records)
    assert "is writable by all users of this machine" in writable
    assert f"functions.{__name__}:on matches no bound function; did you mean '{__name__}:one'?" in unmatched
    assert "base.yaml:2:" in unmatched
    registry.reload()
    assert len(caplog.records) == 2
    assert bound() == 1
