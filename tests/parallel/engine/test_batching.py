"""Whether a call receives an item or a batch, by the annotation of the parameter."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

import pytest

from opero import MapError, Policy, opmap
from opero.parallel.engine.batching import BatchRule

if TYPE_CHECKING:
    from opero import Stats as OnlyForTypeCheckers


def plain(item): ...  # type: ignore[no-untyped-def]
def number(item: int) -> Any: ...
def numbers(items: list[int]) -> Any: ...
def bare(items: list) -> Any: ...  # type: ignore[type-arg]
def typing_list(items: typing.List[int]) -> Any: ...  # noqa: UP006
def anything(items: list[Any]) -> Any: ...
def rows(row: list[list[int]]) -> Any: ...
def dicts(items: list[dict[str, int]]) -> Any: ...
def unresolvable(items: list[OnlyForTypeCheckers]) -> Any: ...
def unresolvable_item(item: OnlyForTypeCheckers) -> Any: ...
def tuples(items: tuple[int, ...]) -> Any: ...
def either(items: list[int] | int) -> Any: ...
def nothing() -> Any: ...


@pytest.mark.parametrize(
    ("function", "item", "applies"),
    [
        (plain, 1, False),
        (plain, [1], False),
        (number, 1, False),
        (numbers, 1, True),
        (numbers, "1", True),
        (numbers, [1], False),  # an item is such a list
        (numbers, [], False),
        (numbers, ["a"], True),  # an item is another list
        (bare, 1, True),
        (bare, [1], False),
        (typing_list, 1, True),
        (typing_list, [1], False),
        (anything, 1, True),
        (anything, ["a"], False),
        (rows, 1, True),
        (rows, [1], True),  # a call gets a list of rows
        (rows, [[1]], False),
        (dicts, {"a": 1}, True),
        (dicts, [{"a": 1}], False),
        (unresolvable, 1, True),
        (unresolvable_item, 1, False),
        (tuples, 1, False),
        (either, 1, False),
        (either, "1", True),
        (nothing, 1, False),
    ],
)
def test_a_list_annotation_takes_batches_unless_an_item_is_such_a_list(function: Any, item: Any, applies: bool) -> None:
    assert BatchRule(function, 0, None).applies(item) is applies
    assert BatchRule(function, 0, True).applies(item) is True
    assert BatchRule(function, 0, False).applies(item) is False


def test_the_annotation_of_a_method_is_that_of_its_second_parameter() -> None:
    class Service:
        def load(self, keys: list[int]) -> list[int]:
            return keys

    assert BatchRule(Service.load, 1, None).applies(3)
    assert not BatchRule(Service.load, 0, None).applies(3)


def test_string_annotations_are_resolved() -> None:
    def load(keys: "list[int]") -> Any: ...  # noqa: UP037
    def load_one(keys: "typing.Annotated[int, 'list']") -> Any: ...  # noqa: UP037
    def load_annotated(keys: "typing.Annotated[list[int], 'ids']") -> Any: ...  # noqa: UP037

    assert BatchRule(load, 0, None).applies(3)
    assert not BatchRule(load_one, 0, None).applies(3)
    assert BatchRule(load_annotated, 0, None).applies(3)


def test_an_optional_list_takes_batches_too() -> None:
    def load(keys: list[int] | None) -> Any: ...
    def load_typing(keys: typing.Optional[list[int]]) -> Any: ...

    assert BatchRule(load, 0, None).applies(3)
    assert BatchRule(load_typing, 0, None).applies(3)
    assert not BatchRule(load, 0, None).applies([3])


@pytest.mark.parametrize(
    "results", [[1], (1, 2, 3), None, 3, {"a": 1}, "ab", iter([1, 2])], ids=lambda each: type(each).__name__
)
def test_a_batch_must_return_a_list_of_equal_length(results: Any) -> None:
    with pytest.raises(ValueError, match="received a batch of 2 items and returned") as caught:
        BatchRule(numbers, 0, None).check(results, [1, 2])
    text = str(caught.value)
    assert "numbers" in text
    assert "'items'" in text
    assert "batch=False" in text


def test_a_batch_may_return_a_tuple() -> None:
    assert BatchRule(numbers, 0, None).check((1, 2), [1, 2]) == [1, 2]


# Maps


def test_batches_have_the_given_size() -> None:
    sizes: list[int] = []

    @opmap(mode="thread", workers=1, batch_size=4)
    def double(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * each for each in items]

    assert double(range(10)) == [2 * each for each in range(10)]
    assert sizes == [4, 4, 2]


def test_a_list_of_lists_is_mapped_one_list_a_call() -> None:
    @opmap(mode="thread")
    def total(row: list[int]) -> int:
        return sum(row)

    assert total([[1, 2], [3], []]) == [3, 3, 0]


def test_batch_false_passes_each_list_as_an_item() -> None:
    @opmap(mode="thread", batch=False)
    def total(row: list[int]) -> int:
        return len(row)

    assert total([[], [1]]) == [0, 1]


def test_batch_true_passes_lists_without_a_list_annotation() -> None:
    @opmap(mode="thread", batch=True, batch_size=2)
    def shapes(item: Any) -> list[str]:
        return [type(item).__name__] * len(item)

    assert shapes([1, 2, 3]) == ["list", "list", "list"]


def test_a_result_of_wrong_length_fails_the_batch_and_suggests_batch_false() -> None:
    @opmap(mode="thread", batch_size=2, workers=1)
    def load(ids: list[int]) -> list[int]:
        return ids[:1]

    with pytest.raises(MapError, match=r"returned a list of 1.*batch=False") as caught:
        load([1, 2, 3])
    assert [each.index for each in caught.value.failures] == [0, 1]


def test_the_error_for_a_wrong_length_names_batch_true() -> None:
    @opmap(mode="thread", batch=True, batch_size=2, workers=1)
    def load(item: Any) -> Any:
        return item[:1]

    with pytest.raises(MapError, match="batch=True") as caught:
        load([1, 2])
    assert "is annotated as a list" not in str(caught.value)


def test_a_batch_that_fails_fails_all_its_items() -> None:
    @opmap(mode="thread", batch_size=2, workers=1, retries=0, on_error="return")
    def load(ids: list[int]) -> list[int]:
        if 3 in ids:
            raise KeyError(3)
        return ids

    one, two, three, four, five = load([1, 2, 3, 4, 5])
    assert (one, two, five) == (1, 2, 5)
    assert isinstance(three, KeyError)
    assert isinstance(four, KeyError)


def test_the_map_method_passes_batches_by_the_annotation_too() -> None:
    def load(ids: list[int]) -> list[int]:
        return [each + 1 for each in ids]

    bound = Policy(parallel="thread").apply(load)
    assert bound([1, 2]) == [2, 3]
    assert bound.map([1, 2, 3]) == [2, 3, 4]
