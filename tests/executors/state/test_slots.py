"""The decisions about a bulkhead's slots, as functions of values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opero.executors.state.home import Owner
from opero.executors.state.shared_slots import FOREVER, Table, add_slots, queue_as, try_take, without
from opero.executors.state.slots import NOWHERE, grants, has_room

OWNERS: list[Owner] = [(1, 10.0), (2, 20.0), (3, 30.0)]
ME = OWNERS[0]
TABLES = st.builds(
    Table,
    st.dictionaries(st.sampled_from(OWNERS), st.integers(1, 4)),
    st.dictionaries(st.sampled_from(OWNERS), st.floats(0, 100)),
)


def test_a_new_call_gets_a_free_slot_that_no_other_waits_for() -> None:
    assert has_room(1, 0)
    assert not has_room(1, 1)
    assert not has_room(0, 0)
    assert not has_room(-2, 0)  # the limit was lowered
    assert not has_room(NOWHERE, 0)


@given(st.integers(-5, 10), st.integers(0, 10))
def test_as_many_waiting_calls_get_a_slot_as_are_free(free: int, waiting: int) -> None:
    granted = grants(free, waiting)
    assert 0 <= granted <= waiting
    assert granted <= max(0, free)
    assert granted == waiting or granted == max(0, free)
    assert not grants(free - granted, waiting - granted)


def test_none_is_granted_where_the_state_has_left() -> None:
    assert grants(NOWHERE, 3) == 0


@given(TABLES, st.sampled_from(OWNERS), st.integers(1, 3))
def test_slots_that_are_taken_and_given_back_leave_the_table_as_it_was(table: Table, owner: Owner, count: int) -> None:
    more = add_slots(table, owner, count)
    assert sum(more.taken.values()) == sum(table.taken.values()) + count
    assert add_slots(more, owner, -count) == table


@given(
    TABLES, st.integers(0, 12), st.one_of(st.just(FOREVER), st.floats(0, 100)), st.one_of(st.none(), st.floats(0, 9))
)
def test_a_slot_is_taken_only_within_the_limit_and_never_before_a_call_that_has_waited_longer(
    table: Table, limit: int, arrived: float, following: float | None
) -> None:
    taken = sum(table.taken.values())
    others = [since for owner, since in table.waiting.items() if owner != ME]
    after = try_take(table, limit, ME, arrived, following)
    if after is None:
        in_front = bool(table.waiting) if arrived == FOREVER else any(since < arrived for since in others)
        assert taken >= limit or in_front
        return
    assert taken < limit
    assert sum(after.taken.values()) == taken + 1
    assert after.taken[ME] == table.taken.get(ME, 0) + 1
    assert all(since >= arrived for since in others)
    if arrived != FOREVER:
        assert after.waiting.get(ME) == following
        assert [since for owner, since in after.waiting.items() if owner != ME] == others


@given(TABLES, st.sampled_from(OWNERS), st.floats(0, 9))
def test_a_process_waits_since_one_moment_or_not_at_all(table: Table, owner: Owner, since: float) -> None:
    waits = queue_as(table, owner, since)
    assert waits.waiting[owner] == since
    left = queue_as(waits, owner, None)
    assert left == queue_as(table, owner, None)
    assert owner not in left.waiting
    assert left.taken == table.taken


@given(TABLES, st.sets(st.sampled_from(OWNERS)))
def test_processes_that_have_ended_have_no_slots_and_do_not_wait(table: Table, gone: set[Owner]) -> None:
    left = without(table, gone)
    assert not gone & {*left.taken, *left.waiting}
    assert {**table.taken, **left.taken} == table.taken
    assert len(left.taken) == len(table.taken.keys() - gone)
    assert len(left.waiting) == len(table.waiting.keys() - gone)
