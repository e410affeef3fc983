"""Names → policies, and the state that the functions bound to one name share."""

from __future__ import annotations

import asyncio
import pickle
import re
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from opero import (
    CircuitOpenError,
    ConfigError,
    Policy,
    PolicyNotFoundError,
    Registry,
    get_default_registry,
    opero,
    opmap,
    set_default_registry,
)
from opero.testing import VirtualClock


def one() -> int:
    return 1


def broken() -> int:
    raise ConnectionError


def test_a_registry_is_a_mapping_of_names_to_policies() -> None:
    registry = Registry({"api": Policy(retry=2), "db": Policy()})
    assert registry["api"] == Policy(retry=2)
    assert sorted(registry) == ["api", "db"]
    assert len(registry) == 2
    assert registry.get("nothing") is None
    assert "api" in registry


def test_the_error_for_an_unknown_profile_names_the_nearest_and_all_profiles() -> None:
    registry = Registry({"api": Policy(), "batch": Policy()})
    with pytest.raises(PolicyNotFoundError, match=r"no profile 'apy' .*\(api, batch\); did you mean 'api'?") as caught:
        registry["apy"]
    assert caught.value.name == "apy"
    assert isinstance(caught.value, KeyError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_without_policy_files_the_error_says_where_they_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PolicyNotFoundError,
        match="as there is no directory policies in .* or above it in its project; set OP",
    ):
        Registry.load(environ={})["api"]


def test_an_unknown_profile_fails_at_bind_and_for_a_decorator_at_the_first_call() -> None:
    registry = Registry()
    with pytest.raises(PolicyNotFoundError):
        registry.bind(one, "api")
    late = opero(policy="api", registry=registry)(one)
    for _ in range(2):
        with pytest.raises(PolicyNotFoundError):
            late()


def test_sync_and_async_functions_of_a_profile_share_its_rate_limit() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(rate_limit=10)})
    first = registry.bind(one, "api", clock=clock)

    @opero(policy="api", registry=registry, clock=clock)
    async def second() -> int:
        return 2

    async def both() -> None:
        for _ in range(2):
            first()
            await second()

    started = clock.monotonic()
    clock.run(both())
    assert clock.monotonic() - started == pytest.approx(0.3)


def test_functions_of_a_profile_share_its_circuit_breaker() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(circuit_breaker=2)})
    bad, good = registry.bind(broken, "api", clock=clock), registry.bind(one, "api", clock=clock)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            bad()
    with pytest.raises(CircuitOpenError, match="api: the circuit is open"):
        good()
    assert good.binding.circuit_breaker is bad.binding.circuit_breaker
    assert good.binding.circuit_breaker.state == "open"


@pytest.mark.parametrize(
    ("profile", "options"),
    [
        ({"circuit_breaker": {"consecutive_failures": 1, "scope": "function"}}, {}),
        ({"circuit_breaker": 1}, {"circuit_breaker": 2}),
    ],
)
def test_scope_or_own_options_give_a_function_state_of_its_own(profile: Any, options: Any) -> None:
    registry = Registry({"api": Policy(**profile)})
    first, second = registry.bind(one, "api"), registry.bind(one, "api", **options)
    assert first.binding.circuit_breaker is not second.binding.circuit_breaker


def test_equal_policies_of_two_profiles_share_nothing() -> None:
    registry = Registry({"a": Policy(circuit_breaker=1), "b": Policy(circuit_breaker=1)})
    assert registry.bind(one, "a").binding.circuit_breaker is not registry.bind(one, "b").binding.circuit_breaker


def test_functions_with_inline_options_share_no_state() -> None:
    first, second = opero(circuit_breaker=1)(one), opero(circuit_breaker=1)(one)
    assert first.binding.circuit_breaker is not second.binding.circuit_breaker


def test_a_disabled_registry_applies_only_fallback_results() -> None:
    registry = Registry(
        {"api": Policy(retry=5, cache=True, rate_limit=1), "safe": Policy(retry=5, fallback={"default": 7})},
        enabled=False,
    )
    with pytest.raises(ConnectionError):
        registry.bind(broken, "api")()
    safe = registry.bind(broken, "safe")
    assert safe() == 7
    assert safe.stats.attempts == 1


@pytest.mark.parametrize("name", ["OPERO_ENABLED", "opero_enabled"])
def test_opero_enabled_switches_off_inline_policies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "false")
    calls = []
    plainly = opero(retries=5, cache=True)(lambda: calls.append(1) or broken())
    with pytest.raises(ConnectionError):
        plainly()
    assert calls == [1]
    assert opero(retries=5, fallback={"default": 7})(broken)() == 7
    monkeypatch.setenv(name, "perhaps")
    with pytest.raises(ConfigError, match="OPERO_ENABLED: 'perhaps' is invalid: use true or false"):
        opero(one)


def test_a_default_registry_that_was_set_is_used_at_the_first_call() -> None:
    late = opero(policy="api")(one)
    set_default_registry(Registry({"api": Policy(retry=9)}))
    try:
        assert late() == 1
        assert late.policy == get_default_registry()["api"] == Policy(retry=9)
    finally:
        set_default_registry(None)


def test_binding_to_a_profile_that_does_not_fit_is_an_error() -> None:
    registry = Registry({"api": Policy(fallback={"arg": "api_key"})})
    with pytest.raises(ConfigError, match="has no parameter 'api_key'"):
        registry.bind(one, "api")


def test_swap_lets_running_calls_finish_on_the_old_policy_and_keeps_counts() -> None:
    clock = VirtualClock()

    async def main() -> None:
        begun = asyncio.Event()
        go_on = asyncio.Event()

        async def fails_when_told() -> int:
            begun.set()
            await go_on.wait()
            raise ConnectionError

        bound = Policy(retry={"retries": 2, "jitter": False}).apply(fails_when_told, clock=clock)
        task = asyncio.create_task(bound())
        await begun.wait()
        bound.binding.swap(Policy())
        go_on.set()
        with pytest.raises(ExceptionGroup):
            await task
        assert bound.stats.attempts == 3
        with pytest.raises(ConnectionError):
            await bound()
        assert (bound.stats.calls, bound.stats.attempts) == (2, 4)
        assert bound.policy == Policy()

    clock.run(main())


def test_a_swap_to_a_policy_that_does_not_fit_changes_nothing() -> None:
    bound = Policy(retry=1).apply(one)
    with pytest.raises(ConfigError):
        bound.binding.swap(Policy(fallback={"arg": "api_key"}))
    assert bound.policy == Policy(retry=1)
    assert bound() == 1


def test_bindings_lists_all_functions_including_uncalled_ones() -> None:
    registry = Registry({"api": Policy(retry=2)})
    late = opero(policy="api", registry=registry)(broken)
    bound = registry.bind(one, "api", retries=1)
    inline = opero(cache=True, registry=registry)(str.upper)  # any function of another module
    found = registry.bindings()
    assert [each.name for each in found] == ["builtins:str.upper", f"{__name__}:broken", f"{__name__}:one"]
    assert [each.profile for each in found] == [None, "api", "api"]
    assert [each.function for each in found] == [inline, late, bound]
    assert found[2].policy == Policy(retry=1)
    assert late.binding.is_late
    line = bound.binding.declaration.place[1]
    assert str(found[2].place).endswith(f"test_registry.py:{line} (Registry.bind)")
    assert str(found[1].place).endswith("(@opero)")


def test_the_default_registry_lists_functions_not_called_yet() -> None:
    registry = Registry({"api": Policy()})
    late = opero(policy="api")(one)
    set_default_registry(registry)
    try:
        assert late in [each.function for each in registry.bindings()]
        late()
        assert [each.function for each in registry.bindings()].count(late) == 1
    finally:
        set_default_registry(None)
    assert late not in [each.function for each in registry.bindings()]


def test_a_new_default_registry_applies_to_functions_called_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    set_default_registry(None)
    inline, named = opero(retries=1)(one), opero(policy="api")(one)
    assert inline() == 1  # under no configuration at all
    try:
        for retries in (4, 5):
            registry = Registry({"api": Policy(retry=retries)})
            set_default_registry(registry)
            with registry.override(functions={f"{__name__}:one": {"timeout": "7s"}}):
                assert (inline(), named()) == (1, 1)
                assert named.policy == Policy(retry=retries, timeout=7)
                assert inline.policy == Policy(retry=1, timeout=7)
            assert inline.policy == Policy(retry=1)
            assert any(each.function is named for each in registry.bindings())
        assert inline.stats.calls == 3
    finally:
        set_default_registry(None)


def test_first_calls_and_loading_the_default_registry_do_not_deadlock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that the files name calls a function while it is imported, and another thread calls it, too."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: {retry_on: calling_module.Error}}}")
    (tmp_path / "calling_module.py").write_text(
        "import opero, threading\n"
        "class Error(Exception): pass\n"
        "@opero.opero\n"
        "def f(): return 1\n"
        "other = threading.Thread(target=f, daemon=True)\n"
        "other.start()\n"
        "other.join(0.5)\n"
        "assert f() == 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    set_default_registry(None)
    done = threading.Thread(target=get_default_registry, daemon=True)
    try:
        done.start()
        done.join(30)
        assert not done.is_alive()
    finally:
        set_default_registry(None)


def test_explain_returns_the_sources_of_a_functions_values() -> None:
    registry = Registry({"api": Policy(retry={"retries": 2, "jitter": False})})
    bound = registry.bind(one, "api", retries=1)
    line = bound.binding.declaration.place[1]
    leaves = registry.explain(f"{__name__}:one")
    chain = list(leaves["retry.retries"].chain())
    assert [leaf.value for leaf in chain] == [1, 2, 3]
    assert str(chain[0].source).endswith(f"test_registry.py:{line} (Registry.bind)")
    assert [str(leaf.source) for leaf in chain[1:]] == ["code", "default"]
    assert leaves["policy"].value == "api"
    assert leaves == registry.explain(bound)
    assert str(leaves["retry.max_delay"].source) == "default"
    assert registry.explain("api")["retry.jitter"].value == "none"
    with pytest.raises(PolicyNotFoundError):
        registry.explain("apj")
    with pytest.raises(
        ConfigError, match=f"no function '{__name__}:ome' is bound by this registry; did you mean '{__name__}:one'"
    ):
        registry.explain(f"{__name__}:ome")


def test_override_changes_a_profile_for_all_its_functions_within_the_block() -> None:
    registry = Registry({"api": Policy(retry=2, cache=True), "db": Policy()})
    bound, late = registry.bind(one, "api"), opero(policy="api", registry=registry)(broken)
    with registry.override(api={"retry": {"retries": 0}, "cache": None}) as inner:
        assert inner is registry
        assert registry["api"] == bound.policy == Policy(retry=0)
        with pytest.raises(ConnectionError):
            late()
        with registry.override({"db": Policy(timeout=5)}, api={"retry": 1}):
            assert bound.policy == Policy(retry=1)
            assert registry["db"] == Policy(timeout=5)
        assert bound.policy == Policy(retry=0)
        source = registry.explain("api")["retry.retries"].source
        assert source.name.endswith("test_registry.py")
        assert source.by == "override"
    assert registry["api"] == bound.policy == late.policy == Policy(retry=2, cache=True)
    assert registry["db"] == Policy()


def test_override_accepts_entries_of_functions() -> None:
    registry = Registry({"api": Policy(retry=2)})
    bound = registry.bind(one, "api")
    with registry.override(functions={f"{__name__}:*": {"timeout": "5s"}}):
        assert bound.policy == Policy(retry=2, timeout=5)
    assert bound.policy == Policy(retry=2)


def test_an_override_of_an_unbound_function_is_an_error() -> None:
    registry = Registry({"api": Policy(retry=1)})
    bound = registry.bind(len, "api")
    with (
        pytest.raises(ConfigError, match=r"functions.builtins:lem matches no bound .* mean 'builtins:len'"),
        registry.override(functions={"builtins:lem": {"retry": 2}}),
    ):
        pytest.fail("it must not begin")
    assert bound.policy == Policy(retry=1)


def test_override_ends_with_the_block_even_after_an_exception() -> None:
    registry = Registry({"api": Policy(retry=2)})
    with pytest.raises(ZeroDivisionError), registry.override(api={"retry": 1}):
        1 / 0  # noqa: B018
    assert registry["api"] == Policy(retry=2)


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ({"apj": {}}, "there is no profile 'apj'; did you mean 'api'?"),
        ({"api": {"retyr": 1}}, "unknown key 'retyr' in policies.api; did you mean 'retry'?"),
        ({"api": {"retry": {"retries": -1}}}, "retries"),
        ({"api": 5}, "must be a mapping"),
    ],
)
def test_an_invalid_override_changes_nothing(profiles: Any, said: str) -> None:
    registry = Registry({"api": Policy(retry=2)})
    with pytest.raises(ConfigError, match=re.escape(said)), registry.override(profiles):
        raise AssertionError
    assert registry["api"] == Policy(retry=2)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A third party's module."""
    module = types.ModuleType("third_party")

    def get(url: str) -> str:
        return f"got {url}"

    class Session:
        def get(self, url: str) -> str:
            return f"{type(self).__name__} got {url}"

        @staticmethod
        def plain(url: str) -> str:
            return url

        @classmethod
        def make(cls) -> Any:
            return cls()

    class Child(Session):
        pass

    module.get, module.Session, module.Child = get, Session, Child  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third_party", module)
    return module


def test_bind_import_replaces_a_function_in_its_module(library: Any) -> None:
    registry = Registry({"api": Policy(retry=2)})
    original = library.get
    bound = registry.bind_import("third_party:get", "api", retries=1)
    assert library.get is bound
    assert library.get("x") == "got x"
    assert bound.policy == Policy(retry=1)
    assert bound.stats.calls == 1
    assert [each.name for each in registry.bindings()] == ["third_party:get"]
    with pytest.raises(ConfigError, match="third_party:get is already bound"):
        registry.bind_import("third_party:get", "api")
    with pytest.raises(ConfigError, match="already bound, by a decorator or another registry"):
        Registry({"api": Policy()}).bind_import("third_party:get", "api")
    registry.unbind_import("third_party:get")
    assert library.get is original
    with pytest.raises(ConfigError, match="was not bound by bind_import"):
        registry.unbind_import("third_party:get")


def test_bind_import_replaces_methods_of_every_kind(library: Any) -> None:
    registry = Registry({"api": Policy(retry=2)})
    _ = library.Session.__annotations__  # whoever asks first has the interpreter add them to the class
    before = dict(vars(library.Session))
    for name in ("get", "plain", "make"):
        registry.bind_import(f"third_party:Session.{name}", "api")
    assert library.Session().get("x") == "Session got x"
    assert library.Session.plain("x") == "x"
    assert isinstance(library.Child.make(), library.Child)
    assert [each.function.stats.calls for each in registry.bindings()] == [1, 1, 1]
    for name in ("get", "plain", "make"):
        registry.unbind_import(f"third_party:Session.{name}")
    assert dict(vars(library.Session)) == before


def test_bind_import_of_an_inherited_method_leaves_the_base_class_alone(library: Any) -> None:
    registry = Registry({"api": Policy(retry=2)})
    registry.bind_import("third_party:Child.get", "api")
    assert library.Child().get("x") == "Child got x"
    library.Session().get("x")
    assert registry.bindings()[0].function.stats.calls == 1
    registry.unbind_import("third_party:Child.get")
    assert "get" not in vars(library.Child)


def test_the_target_of_bind_import_is_the_name_in_functions(library: Any) -> None:
    registry = Registry({"api": Policy(retry=2)})
    bound = registry.bind_import("third_party:get", "api")
    with registry.override(functions={"third_party:get": {"retry": 7}}):
        assert bound.policy == Policy(retry=7)
    registry.unbind_import("third_party:get")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("third_party:gett", "third_party has no 'gett'; did you mean 'get'?"),
        ("third_party:Session.gett", "Session has no 'gett'; did you mean 'get'?"),
        ("no_such_module:get", "No module named 'no_such_module'"),
        ("third_party.get", 'use "module:function"'),
        (":get", 'use "module:function"'),
        ("builtins:str.upper", "cannot be replaced"),
    ],
)
def test_bind_import_explains_what_it_cannot_bind(library: Any, target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Registry({"api": Policy()}).bind_import(target, "api")


def test_unbind_import_leaves_a_function_replaced_since(library: Any) -> None:
    registry = Registry({"api": Policy()})
    registry.bind_import("third_party:get", "api")
    library.get = theirs = lambda url: url
    with pytest.raises(ConfigError, match="has been replaced since it was bound"):
        registry.unbind_import("third_party:get")
    assert library.get is theirs


def test_check_reports_a_backend_that_does_not_exist_once_for_a_profile_and_its_functions() -> None:
    registry = Registry({"api": Policy(cache={"backend": "memry"})})
    bound = [opero(policy="api", registry=registry)(function) for function in (lambda: 1, lambda: 2)]
    with pytest.raises(ConfigError, match="policies.api.cache: unknown cache backend 'memry'") as caught:
        registry.check()
    assert len(caught.value.problems) == 1
    with pytest.raises(ConfigError, match="unknown cache backend 'memry'"):
        bound[0]()


def test_check_reports_a_mode_that_cannot_map_the_function() -> None:
    registry = Registry({"api": Policy(parallel="thread")})

    async def load(key: int) -> int:
        return key

    mapped = opmap(policy="api", registry=registry)(load)
    with pytest.raises(ConfigError, match="load is an async function, which mode 'thread' cannot run"):
        registry.check()
    del mapped
