"""What `bind_import` binds where it is, and what it refuses, each with a cure."""

from __future__ import annotations

import re
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from opero import ConfigError, Policy, Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Writes a module that can be imported, and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"theirs_{abs(hash(request.node.name))}"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(dedent(text))
        request.addfinalizer(lambda: sys.modules.pop(name, None))
        return name

    return write


LAZY = """
    made = []

    def fetch_now():
        return 1

    def __getattr__(name):
        if name == "fetch":
            made.append(name)
            return fetch_now
        if name == "extra":
            raise ImportError("install it with theirs[extra]")
        raise AttributeError(name)
"""


def test_a_function_from_a_modules_getattr_is_bound_and_unbound(module: Any) -> None:
    name = module(LAZY)
    registry = Registry({"api": Policy(retry=2)})
    bound = registry.bind_import(f"{name}:fetch", "api")
    theirs = sys.modules[name]
    assert theirs.fetch is bound
    assert (theirs.fetch(), bound.stats.calls) == (1, 1)
    registry.unbind_import(f"{name}:fetch")
    assert theirs.fetch is theirs.fetch_now
    assert "fetch" not in vars(theirs)
    registry.bind_import(f"{name}:fetch", "api")
    del theirs.fetch
    with pytest.raises(ConfigError, match="has been replaced since it was bound"):
        registry.unbind_import(f"{name}:fetch")


def test_an_error_in_a_modules_getattr_is_shown(module: Any) -> None:
    name = module(LAZY)
    with pytest.raises(ConfigError, match=re.escape(f"{name}:extra: ImportError: install it with theirs[extra]")):
        Registry({"api": Policy()}).bind_import(f"{name}:extra", "api")


@pytest.mark.parametrize(
    ("text", "said"), [("def (", "SyntaxError: "), ("1 / 0", "ZeroDivisionError: division by zero")]
)
def test_a_module_that_cannot_be_imported_is_an_error(module: Any, text: str, said: str) -> None:
    name = module(text)
    with pytest.raises(ConfigError, match=f"{name}:fetch: {said}"):
        Registry({"api": Policy()}).bind_import(f"{name}:fetch", "api")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (".foo:bar", "'.foo:bar' is not a function's name; use \"module:function\""),
        (len, 'bind_import expects "module:function", not a value of type builtin_function_or_method'),
        ("decimal:Decimal", "decimal:Decimal is a class, and binding it in place would break isinstance"),
        ("builtins:len", "builtins:len is a builtin that all code uses and cannot be replaced; bind it"),
    ],
)
def test_bind_import_rejects_classes_and_builtins_with_a_remedy(target: Any, said: str) -> None:
    before = len
    with pytest.raises(ConfigError, match=re.escape(said)):
        Registry({"api": Policy()}).bind_import(target, "api")
    assert len is before


def test_a_mock_in_place_of_a_function_is_bound_like_it(module: Any) -> None:
    name = module("def fetch(): return 1")
    registry = Registry({"api": Policy(retry={"retries": 1, "min_delay": 0, "max_delay": 0})})
    with mock.patch(f"{name}.fetch", side_effect=[ConnectionError, 7]) as theirs:
        bound = registry.bind_import(f"{name}:fetch", "api")
        assert sys.modules[name].fetch() == 7
        assert theirs.call_count == 2
        registry.unbind_import(f"{name}:fetch")
        assert sys.modules[name].fetch is theirs
    assert bound.stats.calls == 1


def test_a_method_of_an_instance_is_bound_for_that_instance_only(module: Any) -> None:
    name = module(
        """
        class Session:
            def get(self, url): return f"got {url}"
            async def get_async(self, url): return f"got {url}"

        session, other = Session(), Session()
        """
    )
    registry = Registry({"api": Policy(retry=2)})
    bound = registry.bind_import(f"{name}:session.get", "api")
    theirs = sys.modules[name]
    assert theirs.session.get("x") == theirs.other.get("x") == "got x"
    assert bound.stats.calls == 1
    registry.unbind_import(f"{name}:session.get")
    assert vars(theirs.session) == {}


def test_a_callable_object_in_a_class_still_receives_no_instance(module: Any) -> None:
    name = module("class Session: pass")
    registry = Registry({"api": Policy(retry=2)})
    __import__(name)
    with mock.patch.object(sys.modules[name].Session, "get", create=True, return_value=7) as theirs:
        registry.bind_import(f"{name}:Session.get", "api")
        assert sys.modules[name].Session().get("x") == 7
        theirs.assert_called_once_with("x")
        registry.unbind_import(f"{name}:Session.get")
        assert sys.modules[name].Session.get is theirs


def test_a_function_of_an_object_with_slots_cannot_be_replaced(module: Any) -> None:
    name = module(
        """
        class Session:
            __slots__ = ()
            def get(self): return 1

        session = Session()
        """
    )
    with pytest.raises(ConfigError, match="session.get cannot be replaced: Session has slots; bind it and call"):
        Registry({"api": Policy()}).bind_import(f"{name}:session.get", "api")
