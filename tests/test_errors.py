"""The exceptions: their tree, pickling, and the behaviour of the groups."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from opero import (
    AllFailedError,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigError,
    FailedResponseError,
    Failure,
    MapError,
    MemoryLimitError,
    MissingExtraError,
    OperoError,
    PolicyNotFoundError,
    RateLimitExceededError,
    RejectedError,
    ResultRejectedError,
    UnknownOptionError,
    WorkerDiedError,
    errors,
)

FIRST, SECOND = ValueError("first"), OSError(5, "second")


def failed(exceptions: dict[int, Exception]) -> list[Failure]:
    return [Failure(index, f"item {index}", exception) for index, exception in exceptions.items()]


def by_index(error: MapError) -> dict[int, Exception]:
    return {failure.index: failure.exception for failure in error.failures}


def examples() -> list[OperoError]:
    return [
        OperoError("something", 3),
        AllFailedError("all failed", [FIRST, SECOND]),
        CallTimeoutError("late", scope="total", seconds=2.5, waiting_for="a permit", errors=[FIRST]),
        ResultRejectedError("refused", result={"a": 1}),
        FailedResponseError("returned 503", result={"a": 1}, status=503),
        RejectedError("away", retry_in=1.5),
        CircuitOpenError("open", retry_in=2.0),
        RateLimitExceededError("too many", retry_in=0.1),
        BulkheadFullError("full"),
        MapError("items failed", {0: "a", 3: "b"}, failed({1: FIRST, 2: SECOND})),
        MemoryLimitError("too much", {0: "a"}, [], MemoryError("too much")),
        WorkerDiedError("it died", times=2),
        ConfigError("wrong"),
        MissingExtraError("pip install it"),
        PolicyNotFoundError("no profile 'x'", name="x"),
        UnknownOptionError("unknown option"),
    ]


every = pytest.mark.parametrize("error", examples(), ids=lambda error: type(error).__name__)


def same(one: Any, other: Any) -> bool:
    """Return whether two objects are equal, where exceptions are equal if their types and contents are."""
    if isinstance(one, BaseException):
        return type(one) is type(other) and one.args[:1] == other.args[:1] and same(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def drawn() -> dict[str, tuple[str, str | None]]:
    """Return class → (its parent in the docstring's tree, its other base class)."""
    parents: list[str] = []
    tree = {}
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"^([ │├└─]*)(\w+Error)(?:\s.*?(?:also an? (\w+)\))?)?$", line)
        if match:
            depth = len(match[1]) // 4 - 1  # the tree is indented
            parents[depth:] = [match[2]]
            tree[match[2]] = (parents[depth - 1] if depth else "Exception", match[3])
    return tree


def test_the_docstring_shows_the_class_tree() -> None:
    tree = drawn()
    assert set(tree) == {name for name in errors.__all__ if name.endswith("Error")}
    for name, (parent, also) in tree.items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [parent, *([also] if also else [])], name


def test_every_error_class_has_an_example() -> None:
    assert {type(error).__name__ for error in examples()} == set(drawn())


@every
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_pickles_with_all_attributes(error: OperoError, protocol: int) -> None:
    error = copy.copy(error)
    error.add_note("said later")
    copied = pickle.loads(pickle.dumps(error, protocol))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert same(vars(copied), vars(error))
    assert copied.__notes__ == ["said later"]
    assert type(copied.__cause__) is type(error.__cause__)
    if isinstance(error, BaseExceptionGroup):
        assert same(copied.exceptions, error.exceptions)
        assert same(copied.args, error.args)


@every
def test_an_error_can_be_copied(error: OperoError) -> None:
    assert same(copy.copy(error), error)
    assert same(copy.deepcopy(error), error)


@every
def test_a_subclass_of_an_error_pickles(error: OperoError) -> None:
    class Own(type(error)):  # type: ignore[misc]
        pass

    Own.__qualname__, Own.__module__ = "Own", __name__
    globals()["Own"] = Own
    own = Own.__new__(Own, *error.__reduce__()[1][1]) if not isinstance(error, BaseExceptionGroup) else None
    if own is not None:
        assert type(pickle.loads(pickle.dumps(own))) is Own


def test_str_returns_the_message() -> None:
    assert str(PolicyNotFoundError("no profile 'x'")) == "no profile 'x'"
    assert str(UnknownOptionError("unknown option")) == "unknown option"
    assert str(AllFailedError("all failed", [FIRST, SECOND])) == "all failed"
    assert str(MapError("failed", {}, failed({4: FIRST}))) == "failed"


def test_the_cause_is_the_last_attempt() -> None:
    assert AllFailedError("all failed", [FIRST, SECOND]).__cause__ is SECOND
    assert CallTimeoutError("late", errors=[FIRST, SECOND]).__cause__ is SECOND
    assert MapError("failed", {}, failed({4: FIRST, 9: SECOND})).__cause__ is None


def test_an_all_failed_error_needs_at_least_one_error() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        AllFailedError("all failed", [])


def test_a_map_error_can_have_no_failed_item() -> None:
    error = MapError("interrupted", {0: 1}, [])
    assert error.failures == ()
    assert [str(each) for each in error.exceptions] == ["no item failed"]


def test_retry_failed_is_not_available_without_the_map() -> None:
    with pytest.raises(OperoError, match=r"retry_failed is not available.*map the items of its failures again"):
        MapError("failed", {}, failed({4: FIRST})).retry_failed()


# Groups


def test_except_star_sees_every_attempt() -> None:
    seen: list[Exception] = []
    try:
        raise AllFailedError("all failed", [FIRST, SECOND])
    except* OSError as group:
        seen += group.errors  # type: ignore[attr-defined]  # it is an AllFailedError
    except* ValueError as group:
        seen += group.exceptions
    assert seen == [SECOND, FIRST]


def test_an_all_failed_error_can_be_split_by_type() -> None:
    error = AllFailedError("all failed", [FIRST, SECOND, KeyError("k")])
    error.add_note("a note")
    matching, rest = error.split(LookupError)
    assert isinstance(matching, AllFailedError)
    assert isinstance(rest, AllFailedError)
    assert [type(each) for each in matching.errors] == [KeyError]
    assert rest.errors == (FIRST, SECOND)
    assert matching.__notes__ == ["a note"]
    assert error.subgroup(ZeroDivisionError) is None
    assert error.split(Exception) == (error, None)


def test_errors_are_the_exceptions_of_the_group() -> None:
    nested = ExceptionGroup("inner", [KeyError("k")])
    error = AllFailedError("all failed", [nested, SECOND])
    assert error.errors == error.exceptions == (nested, SECOND)
    subgroup = error.subgroup(KeyError)
    assert isinstance(subgroup, AllFailedError)
    assert isinstance(subgroup.errors[0], ExceptionGroup)


def test_except_star_sees_every_failed_item_with_its_index() -> None:
    error = MapError("failed", {0: "a"}, failed({1: FIRST, 2: SECOND, 5: OSError("third")}))
    groups: list[Any] = []
    try:
        raise error
    except* OSError as group:
        groups.append(group)
    except* ValueError as group:
        groups.append(group)
    assert [type(group) for group in groups] == [MapError, MapError]
    assert by_index(groups[0]) == {2: SECOND, 5: by_index(error)[5]}
    assert groups[0].results == {0: "a"}
    assert by_index(groups[1]) == {1: FIRST}


def test_failed_items_keep_their_indices_when_a_group_among_them_is_split() -> None:
    attempts = AllFailedError("all failed", [FIRST, SECOND])
    error = MapError("failed", {0: "a"}, failed({7: attempts, 9: KeyError("k")}))
    matching, rest = error.split(OSError)
    assert isinstance(matching, MapError)
    assert isinstance(rest, MapError)
    assert list(by_index(matching)) == [7]
    assert by_index(matching)[7].exceptions == (SECOND,)  # type: ignore[attr-defined]
    assert list(by_index(rest)) == [7, 9]
    assert by_index(rest)[7].exceptions == (FIRST,)  # type: ignore[attr-defined]


def test_failures_that_compare_equal_keep_their_own_indices() -> None:
    class EqualError(Exception):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, EqualError)

        __hash__ = Exception.__hash__

    one, two = EqualError("one"), EqualError("two")
    error = MapError("failed", {}, failed({3: one, 8: two, 9: FIRST}))
    group = error.subgroup(lambda each: each is two)
    assert isinstance(group, MapError)
    assert list(by_index(group)) == [8]
    assert by_index(group)[8] is two


def test_an_exception_shared_by_two_items_keeps_both_failures() -> None:
    error = MapError("failed", {}, failed({3: FIRST, 8: FIRST, 9: SECOND}))
    group = error.subgroup(ValueError)
    assert isinstance(group, MapError)
    assert by_index(group) == {3: FIRST, 8: FIRST}


def test_a_base_exception_is_refused() -> None:
    with pytest.raises(TypeError, match="BaseException"):
        AllFailedError("all failed", [KeyboardInterrupt()])  # type: ignore[list-item]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(" first\n  second\t third\n"), "ValueError: first second third"),
        (ValueError(), "ValueError"),
        (UnprintableError(), "UnprintableError: <unprintable UnprintableError>"),
    ],
)
def test_an_exception_is_described_on_one_line(error: Exception, text: str) -> None:
    assert errors.describe(error) == text


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("retrys", ["retries", "cache"], "; did you mean 'retries'?"),
        ("RETRIES", ["retries"], "; did you mean 'retries'?"),
        ("zzz", ["b", "a"], "; known: a, b"),
        ("zzz", [], ""),
        ("zzz", ["__doc__", "_own", "found"], "; known: found"),
        ("zzz", ["__doc__", "_own"], "; known: __doc__, _own"),
        ("__dok__", ["__doc__", "found"], "; did you mean '__doc__'?"),
        ("zzz", map(str, range(20)), "; known: 0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, …"),
    ],
)
def test_the_hint_suggests_the_nearest_known_name(name: str, known: Any, hint: str) -> None:
    assert errors.nearest(name, known) == hint
