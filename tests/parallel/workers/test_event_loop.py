"""Maps in the running event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from opero import ConfigError, MapError, opero, opmap
from opero.testing import VirtualClock


async def half(number: int) -> int:
    await asyncio.sleep(0.1)
    if number % 2:
        raise ValueError(number)
    return number // 2


def mapped(function: Any = half, **options: Any) -> Any:
    return opmap(**{"workers": 4, "retries": 0, **options})(function)


def run(coroutine: Any) -> Any:
    return VirtualClock().run(coroutine)


def test_results_have_the_order_of_the_items() -> None:
    async def nap(number: int) -> int:
        await asyncio.sleep(5 - number)
        return number

    assert run(mapped(nap)(range(5))) == [0, 1, 2, 3, 4]


def test_unordered_results_come_as_they_are_ready() -> None:
    async def nap(number: int) -> int:
        await asyncio.sleep(4 - number)
        return number

    assert run(mapped(nap, ordered=False)(range(4))) == [3, 2, 1, 0]


def test_as_many_items_run_at_a_time_as_there_are_workers() -> None:
    clock = VirtualClock()

    async def nap(number: int) -> float:
        await asyncio.sleep(1)
        return clock.now

    started = clock.now
    ended = clock.run(mapped(nap, workers=3)(range(9)))
    assert [round(each - started) for each in ended] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_hundred_items_run_at_a_time_by_default() -> None:
    clock = VirtualClock()

    async def nap(number: int) -> float:
        await asyncio.sleep(1)
        return clock.now

    started = clock.now
    assert max(clock.run(opmap(nap)(range(200)))) - started == pytest.approx(2)


def test_a_generator_and_an_iterable_passed_by_keyword_can_be_mapped_with_further_arguments() -> None:
    async def join(item: str, sep: str, *, end: str = "") -> str:
        return item + sep + end

    assert run(mapped(join)((each for each in "ab"), "-", end="!")) == ["a-!", "b-!"]
    assert run(mapped(join)(item=["a"], sep="-")) == ["a-"]


def test_batches_have_the_given_size() -> None:
    batches: list[list[int]] = []

    async def double(items: list[int]) -> list[int]:
        batches.append(items)
        return [2 * each for each in items]

    assert run(mapped(double, batch_size=2)([1, 2, 3])) == [2, 4, 6]
    assert batches == [[1, 2], [3]]


def test_a_failed_item_raises_a_map_error_with_all_results_so_far() -> None:
    with pytest.raises(MapError) as caught:
        run(mapped(workers=1)([0, 2, 3, 4]))
    assert caught.value.results == {0: 0, 1: 1}
    assert [tuple(each)[:2] for each in caught.value.failures] == [(2, 3)]
    assert "1 was not finished" in str(caught.value)


def test_a_string_is_refused_when_the_map_is_awaited() -> None:
    with pytest.raises(TypeError, match="wrap it in a list"):
        run(mapped()("text"))


def test_cancelling_the_map_cancels_its_items() -> None:
    cancelled: list[int] = []

    async def nap(number: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def main() -> None:
        task = asyncio.create_task(mapped(nap)([1, 2]))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert sorted(cancelled) == [1, 2]


def test_an_item_that_suppresses_its_cancellation_causes_no_error_in_the_event_loop() -> None:
    wrong: list[Any] = []

    async def suppress(number: int) -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return number
        return number

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: wrong.append(context))
        task = asyncio.create_task(mapped(suppress)([1, 2]))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(1)

    run(main())
    assert wrong == []


def test_an_item_that_raises_cancelled_error_fails() -> None:
    async def raise_cancelled(number: int) -> int:
        if number == 1:
            raise asyncio.CancelledError
        return number

    async def main() -> Any:
        return await mapped(raise_cancelled, workers=1)([0, 1, 2])

    with pytest.raises(MapError, match="the item cancelled itself") as caught:
        run(main())
    assert [each.index for each in caught.value.failures] == [1]


def test_an_item_that_cancels_the_task_of_the_map_ends_the_map() -> None:
    async def cancel_task(number: int) -> int:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)
        return number

    async def main() -> Any:
        return await mapped(cancel_task, workers=1)([0])

    with pytest.raises(asyncio.CancelledError):
        run(main())


def test_a_timeout_around_the_map_ends_it() -> None:
    async def main() -> None:
        async with asyncio.timeout(1):
            await mapped()([0] * 1000)

    with pytest.raises(TimeoutError):
        run(main())


def test_methods_are_mapped_on_their_instance() -> None:
    class Service:
        base = 10

        @opmap
        async def add(self, number: int) -> int:
            return self.base + number

        @opero
        async def one(self, number: int) -> int:
            return self.base + number

    service = Service()
    assert run(service.add([1, 2])) == [11, 12]
    assert run(service.one.map([1, 2])) == [11, 12]


def test_one_rate_limit_holds_for_all_items() -> None:
    clock = VirtualClock()
    times: list[float] = []

    async def note(number: int) -> None:
        times.append(clock.now)

    bound = opmap(rate_limit=10.0, clock=clock, workers=4)(note)
    clock.run(bound(range(5)))
    assert times[-1] - times[0] == pytest.approx(0.4)


def test_as_many_batches_run_at_a_time_as_there_are_workers() -> None:
    async def load(ids: list[int]) -> list[int]:
        await asyncio.wait_for(together.wait(), 30)
        return ids

    async def main() -> None:
        nonlocal together
        together = asyncio.Barrier(20)
        assert await opmap(workers=20, batch_size=50)(load)(range(1000)) == list(range(1000))

    together: Any = None
    asyncio.run(main())


def test_a_sync_function_is_refused_in_async_mode() -> None:
    def plain(item: int) -> int:
        return item

    with pytest.raises(ConfigError, match="plain is a sync function, which mode 'async' cannot run; use mode='thread'"):
        opmap(mode="async")(plain)


def test_an_async_generator_function_cannot_be_mapped() -> None:
    async def items(number: int) -> Any:
        yield number

    with pytest.raises(ConfigError, match="items is a generator function"):
        opmap(mode="async")(items)
