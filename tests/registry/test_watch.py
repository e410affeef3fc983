"""Reloading by itself: real files, a real signal."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from opero import ConfigError, Policy, Registry, on
from opero.events import ConfigurationRejected, ConfigurationReloaded

WITHIN = 30.0


@pytest.fixture
def told() -> Any:
    """The events of configurations, as they come: their names, and what has changed or is wrong."""
    queue: Queue[tuple[str, str]] = Queue()
    offs = [
        on(ConfigurationReloaded, lambda event: queue.put((event.name, "\n".join(event.changes)))),
        on(ConfigurationRejected, lambda event: queue.put((event.name, str(event.error)))),
    ]
    yield queue
    for off in offs:
        off()


def load(directory: Path, text: str) -> Registry:
    directory.mkdir(exist_ok=True)
    (directory / "base.yaml").write_text(text)
    return Registry.load(directory, environ={})


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    return tmp_path / "policies"


def replace(path: Path, text: str) -> None:
    """As careful editors and orchestrators write: a new file takes the old one's name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.mark.parametrize("write", [Path.write_text, replace])
def test_a_changed_file_is_reloaded_and_an_invalid_one_reported_once(
    tmp_path: Path, told: Any, write: Any, caplog: Any
) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    file = tmp_path / "policies" / "base.yaml"
    with registry.watch():
        write(file, "policies: {api: {retry: 2}}")
        assert told.get(timeout=WITHIN) == ("configuration_reloaded", "api.retry.retries: 1 → 2")
        assert registry["api"] == Policy(retry=2)
        write(file, "policies: {api: {retry: minus one}}")
        name, message = told.get(timeout=WITHIN)
        assert name == "configuration_rejected"
        assert "not reloaded (a file has changed); the previous configuration stays in force" in caplog.text
        assert "minus one" in message
        assert registry["api"] == Policy(retry=2)
        write(file, "policies: {api: {retry: minus one}}")
        write(file, "policies: {api: {retry: minus one}} # still")
        write(file, "policies: {api: {retry: 3}}")
        name, message = told.get(timeout=WITHIN)
        while name == "configuration_rejected":  # the line that it shows has a comment more
            assert "# still" in message
            name, message = told.get(timeout=WITHIN)
        assert name == "configuration_reloaded"
        assert registry["api"] == Policy(retry=3)


def test_a_mistake_that_only_moves_is_reported_once(policies: Path, told: Any) -> None:
    registry = Registry.load(policies, environ={})
    wrong = "policies:\n  api: {timeout: {total: 1s, attempt: 2s}}\n  api: {retry: minus one}\n  db: {retries: 1}\n"
    tried = [threading.Event() for _ in range(4)]
    reload, number = registry.reload, 0

    def reload_and_tell() -> Any:
        try:
            return reload()
        finally:
            tried[number].set()

    registry.reload = reload_and_tell  # type: ignore[method-assign]
    with registry.watch(files=False, sighup=True) as watch:
        for number, text in enumerate(
            [wrong, f"# one\n\n{wrong}", wrong.replace("retries", "retires"), "policies: {}"]
        ):
            (policies / "base.yaml").write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            assert tried[number].wait(WITHIN)
        watch.stop()
    names, messages = zip(*(told.get_nowait() for _ in range(told.qsize())), strict=True)
    assert names == ("configuration_rejected", "configuration_rejected", "configuration_reloaded")
    assert ["'retries' in" in messages[0], "'retires' in" in messages[1]] == [True, True]


def test_changes_made_before_the_watch_started_are_found(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 2}}")
    with registry.watch():
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"


def test_adding_or_removing_a_file_reloads(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    with registry.watch():
        (tmp_path / "policies" / "development.yaml").write_text("policies: {api: {retry: 2}}")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
        assert registry["api"] == Policy(retry=2)
        (tmp_path / "policies" / "development.yaml").unlink()
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
        assert registry["api"] == Policy(retry=1)


def test_a_mounted_directory_whose_link_is_switched_is_reloaded(tmp_path: Path, told: Any) -> None:
    """Kubernetes: the files are links into `..data`, which is a link that is replaced as a whole."""
    mount = tmp_path / "policies"
    for number in (1, 2):
        version = mount / f"..version{number}"
        version.mkdir(parents=True)
        (version / "base.yaml").write_text(f"policies: {{api: {{retry: {number}}}}}")
    (mount / "..data").symlink_to("..version1")
    (mount / "base.yaml").symlink_to("..data/base.yaml")
    registry = Registry.load(mount, environ={})
    with registry.watch():
        (mount / "..data_new").symlink_to("..version2")
        os.replace(mount / "..data_new", mount / "..data")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert registry["api"] == Policy(retry=2)


def test_env_files_and_secrets_are_watched(tmp_path: Path, told: Any) -> None:
    load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    (tmp_path / "app").mkdir()
    env_file = tmp_path / "app" / ".env"
    env_file.write_text("OPERO_API_RETRIES=2\n")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    registry = Registry.load(tmp_path / "policies", environ={}, env_file=env_file, secrets_dir=secrets)
    with registry.watch():
        replace(env_file, "OPERO_API_RETRIES=3\n")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
        (secrets / "OPERO_API_CACHE_TTL").write_text("5m\n")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert registry["api"] == Policy(retry=3, cache="5m")


def test_env_files_and_secrets_that_do_not_exist_yet_are_watched(
    policies: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opero.runtime.environment_files.secrets_dir.default", "secrets")
    registry = Registry.load()
    with registry.watch():
        Path(".env").write_text("OPERO_API_RETRIES=3\n")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
        assert registry["api"] == Policy(retry=3)
        Path("new").mkdir()
        Path("new/OPERO_API_CACHE_TTL").write_text("5m\n")
        os.rename("new", "secrets")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
        assert registry["api"] == Policy(retry=3, cache="5m")
        Path(".env").unlink()
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert registry["api"] == Policy(retry=1, cache="5m")


def test_sighup_reloads_and_stop_restores_the_previous_handler(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    try:
        handler = signal.getsignal(signal.SIGHUP)
        with registry.watch(files=False, sighup=True):
            (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 2}}")
            os.kill(os.getpid(), signal.SIGHUP)
            assert told.get(timeout=WITHIN) == ("configuration_reloaded", "api.retry.retries: 1 → 2")
        assert heard == [signal.SIGHUP]
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)
    assert registry["api"] == Policy(retry=2)


def test_a_reload_that_changes_nothing_emits_no_event(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    with registry.watch(files=False, sighup=True):
        os.kill(os.getpid(), signal.SIGHUP)
    with pytest.raises(Empty):
        told.get_nowait()


def test_an_exception_in_a_handler_does_not_stop_the_watch(
    tmp_path: Path, told: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    reload, failed = registry.reload, threading.Event()

    def fail_once() -> Any:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return reload()

    registry.reload = fail_once  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR, "opero"), registry.watch(files=False, sighup=True):
        os.kill(os.getpid(), signal.SIGHUP)
        assert failed.wait(WITHIN)
        (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 2}}")
        os.kill(os.getpid(), signal.SIGHUP)
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert "reloading the configuration failed" in caplog.text


def test_stop_ends_the_threads_and_is_idempotent(tmp_path: Path) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    watch = registry.watch()
    watch.stop()
    watch.stop()
    assert not [each for each in threading.enumerate() if each.name in ("opero-reload", "opero-watch")]


def test_watch_rejects_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was not loaded from files"):
        Registry({"api": Policy()}).watch()
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    with pytest.raises(ConfigError, match="watches nothing"):
        registry.watch(files=False)
    with pytest.raises(ConfigError, match="nothing to reload"):
        Registry({"api": Policy()}).watch(files=False, sighup=True)
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            registry.watch(files=False, sighup=True)
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "must be called in the main thread" in str(errors[0])
    assert not [each for each in threading.enumerate() if each.name in ("opero-reload", "opero-watch")]


def ran_alone(source: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a process of its own that runs this."""
    setup = """
import os, signal, threading
from pathlib import Path
from opero import Registry
registry = Registry.load(Path("policies"), environ={})
def watch(): return registry.watch(files=False, sighup=True)
def hup(): os.kill(os.getpid(), signal.SIGHUP)
def elsewhere(f):
    thread = threading.Thread(target=f)
    thread.start()
    thread.join()
"""
    return subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )


@pytest.mark.parametrize("first", [0, 1])
def test_stopping_one_of_two_watches_leaves_sighup_to_the_other(policies: Path, first: int) -> None:
    ran = ran_alone(f"""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        watches = [watch(), watch()]
        watches.pop({first}).stop()
        hup()
        watches[0].stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        print("alive")
    """)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr


def test_a_watch_stopped_in_another_thread_restores_the_meaning_of_sighup(policies: Path) -> None:
    ran = ran_alone("""
        signal.signal(signal.SIGHUP, lambda *_: print("heard", flush=True))
        one = watch()
        elsewhere(one.stop)
        assert threading.active_count() == 1
        hup()
        with watch():
            hup()
        hup()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        elsewhere(watch().stop)
        hup()
        print("must not be reached")
    """)
    assert (ran.returncode, ran.stdout) == (-signal.SIGHUP, "heard\n" * 3), ran.stderr


def test_a_handler_installed_over_ours_stays_and_a_further_watch_does_not_recurse(policies: Path) -> None:
    ran = ran_alone("""
        one = watch()
        ours = signal.getsignal(signal.SIGHUP)
        def over(number, frame):
            print("over", flush=True)
            ours(number, frame)
        signal.signal(signal.SIGHUP, over)
        two = watch()
        hup()
        two.stop()
        hup()
        one.stop()
        hup()
        print("alive")
    """)
    assert (ran.returncode, ran.stdout) == (0, "over\n" * 3 + "alive\n"), ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_its_own_watch(policies: Path) -> None:
    ran = ran_alone("""
        from opero import on
        told = threading.Event()
        with watch():
            child = os.fork()
            if not child:
                hup()  # its parent's watch is not its own, and ends it neither
                on("configuration_reloaded", lambda event: told.set())
                one = watch()
                Path("policies/base.yaml").write_text("policies: {api: {retry: 2}}")
                hup()
                os._exit(0 if told.wait(30) else 1)
            assert os.waitpid(child, 0)[1] == 0
    """)
    assert ran.returncode == 0, ran.stderr


def two_versions(directory: Path) -> tuple[Path, Path]:
    """A directory that says 1, one that says 2, each with its `policies`."""
    for number in (1, 2):
        (directory / f"v{number}").mkdir()
        load(directory / f"v{number}" / "policies", f"policies: {{api: {{retry: {number}}}}}")
    return directory / "v1", directory / "v2"


def turn_a_link(directory: Path) -> None:
    (directory / "new").symlink_to("v2")
    os.replace(directory / "new", directory / "current")


def put_another_in_its_place(directory: Path) -> None:
    os.rename(directory / "v1" / "policies", directory / "v1" / "policies.old")
    os.rename(directory / "v2" / "policies", directory / "v1" / "policies")


def remove_it_and_make_it_anew(directory: Path) -> None:
    shutil.rmtree(directory / "v1" / "policies")
    load(directory / "v1" / "policies", "policies: {api: {retry: 2}}")


@pytest.mark.parametrize("change", [turn_a_link, put_another_in_its_place, remove_it_and_make_it_anew])
def test_a_directory_that_is_replaced_is_followed(tmp_path: Path, told: Any, change: Callable[[Path], None]) -> None:
    two_versions(tmp_path)
    (tmp_path / "current").symlink_to("v1")
    registry = Registry.load(tmp_path / "current" / "policies", environ={})

    def wait_for(retries: int) -> None:
        while registry["api"] != Policy(retry=retries):
            told.get(timeout=WITHIN)  # it may have been seen while it was away

    with registry.watch():
        change(tmp_path)
        wait_for(2)
        for retries in (3, 4):
            replace(tmp_path / "current" / "policies" / "base.yaml", f"policies: {{api: {{retry: {retries}}}}}")
            wait_for(retries)


def test_a_missing_directory_is_reported_once_and_watched_again_when_it_returns(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    with registry.watch():
        os.rename(tmp_path / "policies", tmp_path / "away")
        name, message = told.get(timeout=WITHIN)
        assert name == "configuration_rejected"
        assert "policies does not exist" in message
        (tmp_path / "another").mkdir()
        (tmp_path / "another" / "base.yaml").write_text("policies: {api: {retry: 2}}")
        os.rename(tmp_path / "another", tmp_path / "policies")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
        replace(tmp_path / "policies" / "base.yaml", "policies: {api: {retry: 3}}")
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert registry["api"] == Policy(retry=3)


def test_a_linked_file_is_watched_at_its_target(tmp_path: Path, told: Any) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "shared.yaml"
    file.write_text("policies: {api: {retry: 1}}")
    (tmp_path / "policies" / "base.yaml").symlink_to(file)
    registry = Registry.load(tmp_path / "policies", environ={})
    with registry.watch():
        for retries in (2, 3):
            file.write_text(f"policies: {{api: {{retry: {retries}}}}}")
            while registry["api"] != Policy(retry=retries):
                told.get(timeout=WITHIN)


def test_entries_of_a_directory_that_change_without_touching_it_are_seen(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / "secrets" / "OPERO_API_RETRIES"
    secret.write_text("2")
    registry = Registry.load(tmp_path / "policies", environ={}, secrets_dir=tmp_path / "secrets")
    directory = os.stat(tmp_path / "secrets").st_mtime_ns
    with registry.watch():
        secret.write_text("3")
        assert os.stat(tmp_path / "secrets").st_mtime_ns == directory
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert registry["api"] == Policy(retry=3)


def test_a_file_that_is_still_being_written_is_not_read(tmp_path: Path, told: Any) -> None:
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    file = tmp_path / "policies" / "base.yaml"
    with registry.watch(), file.open("w") as writing:
        for part in ("policies: {api: {retry: 2}, ", *(f"p{number}: {{retry: 1}}, " for number in range(15)), "x: {}}"):
            writing.write(part)
            writing.flush()
            time.sleep(0.01)  # a slow writer is the subject
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
    assert len(registry) == 17


def test_a_module_that_exits_when_imported_does_not_stop_the_watch(
    tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load(tmp_path / "policies", "policies: {api: {retry: 1}}")
    with registry.watch(files=False, sighup=True):
        load_text = "policies: {api: {retry: {retry_on: 'leaves_at_once:Error'}}}"
        (tmp_path / "policies" / "base.yaml").write_text(load_text)
        os.kill(os.getpid(), signal.SIGHUP)
        name, message = told.get(timeout=WITHIN)
        assert name == "configuration_rejected"
        assert "'leaves_at_once:Error' cannot be imported: SystemExit: 3" in message
        (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 2}}")
        os.kill(os.getpid(), signal.SIGHUP)
        assert told.get(timeout=WITHIN)[0] == "configuration_reloaded"
