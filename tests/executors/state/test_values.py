"""What is remembered of values, against a plain model, and in files that processes share."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import AllFailedError, OperoError, Policy, RateLimitExceededError
from opero.bound import bind
from opero.executors.state.sharing import share_limits
from opero.executors.state.values import MOST, Memory, Rules, begin, choose, leave, merge, plan, set_aside, work
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from pathlib import Path

KEYS = ["a", "b", "c"]
REMEMBER = 60.0
MAX_DELAY = 30.0
OWNER = (1, 1.0)


class AnswerError(Exception):
    def __init__(self, status: int, seconds: int = 0) -> None:
        super().__init__(status)
        self.status_code = status
        self.headers = {"Retry-After": str(seconds)} if seconds else {}


class Model:
    """What the documentation promises for calls one after the other, each with the keys a, b and c.

    Attributes:
        aside: key → until when, and whether it was denied.
        preferred: the key to begin with, and until when.
        asked: the keys asked.
        slept: the waits.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.aside: dict[str, tuple[float, bool]] = {}
        self.preferred = ("", 0.0)
        self.asked: list[str] = []
        self.slept: list[float] = []

    def cooling(self, *, denied: bool) -> list[str]:
        found = [key for key in KEYS if self.aside.get(key, (0.0, denied)) > (self.now, denied)]
        return sorted((key for key in found if self.aside[key][1] is denied), key=lambda key: self.aside[key][0])

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    def call(self, answers: dict[str, Any]) -> Any:
        throttled, denied = self.cooling(denied=False), self.cooling(denied=True)
        ready = [key for key in KEYS if key not in (*throttled, *denied)]
        if not ready and throttled:
            wait = self.aside[throttled[0]][0] - self.now
            if wait <= MAX_DELAY:
                self.sleep(wait)
                return self.call(answers)
            if not denied:
                return RateLimitExceededError
        if self.preferred[0] in ready and self.preferred[1] > self.now:
            ready.sort(key=lambda key: key != self.preferred[0])
        return self.rounds(answers, [*ready, *denied], [(self.aside[key][0], key) for key in throttled])

    def rounds(self, answers: dict[str, Any], keys: list[str], later: list[tuple[float, str]]) -> Any:
        refused: list[str] = []
        has_failed = False
        result: Any = OperoError
        while keys:
            for key in keys:
                self.asked.append(key)
                answer = answers[key]
                if answer == "denied":
                    refused.append(key)
                    continue
                for each in refused:
                    self.set_aside(each, REMEMBER, denied=True)
                refused = []
                if answer == "ok":
                    self.aside.pop(key, None)
                    if has_failed:
                        self.preferred = (key, self.now + REMEMBER)
                    return key
                if answer == "broken":
                    has_failed = True
                else:
                    self.set_aside(key, answer, denied=False)
            keys = []
            if later and min(later)[0] - self.now <= MAX_DELAY:
                until = max(min(later)[0], self.now)
                if until > self.now:
                    self.sleep(until - self.now)
                keys = [key for at, key in later if at <= until]
                later = [(at, key) for at, key in later if at > until]
        others = [key for key in KEYS if key not in refused]
        if any(not self.aside.get(key, (0, False))[1] for key in others):
            for each in refused:
                self.set_aside(each, REMEMBER, denied=True)
        return result

    def set_aside(self, key: str, seconds: float, *, denied: bool) -> None:
        until, was_denied = self.aside.get(key, (0.0, denied))
        same = was_denied is denied
        self.aside[key] = (max(until, self.now + seconds) if same else self.now + seconds, denied)
        if self.preferred[0] == key:
            self.preferred = ("", 0.0)


answer = st.sampled_from(["ok", "denied", "broken", 2, 7, 40])
step = st.one_of(st.fixed_dictionaries(dict.fromkeys(KEYS, answer)), st.sampled_from([1, 5, 35, 60]))


@given(st.lists(step, max_size=12))
def test_calls_one_after_the_other_ask_what_the_documentation_promises(steps: list[Any]) -> None:
    clock, model = VirtualClock(), Model()
    model.now = clock.monotonic()
    asked: list[str] = []
    answers: dict[str, Any] = {}

    def ask(key: str) -> str:
        asked.append(key)
        if answers[key] == "ok":
            return key
        status = {"denied": 401, "broken": 500}.get(answers[key], 429)
        raise AnswerError(status, answers[key] if status == 429 else 0)

    policy = Policy(retry={"retries": 0, "max_delay": MAX_DELAY}, fallback={"arg": "key", "remember": REMEMBER})
    call: Any = policy.apply(ask, clock=clock)
    for each in steps:
        if isinstance(each, int):
            clock.advance(each)
            model.now += each
            continue
        answers.update(each)
        expected = model.call(each)
        try:
            got: Any = call(KEYS)
        except RateLimitExceededError:
            got = RateLimitExceededError
        except (AllFailedError, AnswerError):
            got = OperoError
        assert (got, asked) == (expected, model.asked)
        assert clock.slept == pytest.approx(model.slept)


# Decisions


ids = st.sampled_from("abcd")
rules = st.builds(
    Rules,
    st.sampled_from(["in_order", "round_robin", "weighted", "least_loaded"]),
    st.sampled_from([(), (3.0, 1.0)]),
    st.booleans(),
)


@st.composite
def memories(draw: Any) -> Memory:
    """A memory after some attempts, and the time."""
    memory = Memory()
    for now in range(draw(st.integers(0, 12))):
        value, what = draw(ids), draw(st.integers(0, 4))
        if what == 0:
            begin(memory, value, Rules("least_loaded"), OWNER, float(now))
        elif what == 1:
            leave(memory, value, OWNER)
        elif what == 2:
            work(memory, value, float(now), draw(st.one_of(st.none(), st.floats(0, 30))))
        else:
            set_aside(memory, value, now + draw(st.floats(0, 30)), float(now), is_denied=what == 3)
    return memory


@given(memories(), rules, st.integers(0, 1000), st.floats(12, 40))
def test_each_value_has_one_place_in_a_plan(memory: Memory, rules: Rules, turn: int, now: float) -> None:
    found = plan(memory, "abcd", rules, turn, now)
    later = [position for position, _ in found.later]
    assert sorted([*found.first, *later]) == [0, 1, 2, 3]
    aside = {position for position, value in enumerate("abcd") if value in memory.aside and rules.remembers}
    cooling = {position for position in aside if memory.aside["abcd"[position]].until > now + 1e-6}
    assert found.all_aside == (len(cooling) == 4)
    denied = {position for position in cooling if memory.aside["abcd"[position]].is_denied}
    assert set(found.first[len(found.first) - len(denied) :]) == denied
    assert set(later) == cooling - denied
    assert not set(found.steady) & aside


@given(memories(), rules, st.integers(0, 1000), st.floats(12, 40))
def test_a_memory_survives_pickling_and_begins_with_the_first_of_its_plan(
    memory: Memory, rules: Rules, turn: int, now: float
) -> None:
    copy: Memory = pickle.loads(pickle.dumps(memory))
    assert copy == memory
    assert choose(copy, "abcd", rules, turn, OWNER, now) == plan(memory, "abcd", rules, turn, now)


@given(memories(), memories())
def test_memories_with_one_key_know_together_what_is_set_aside(one: Memory, other: Memory) -> None:
    aside, others = dict(one.aside), dict(other.aside)
    merge(one, other)
    assert one.aside == aside  # it has another key
    other.key = one.key
    merge(one, other)
    assert one.aside == others | aside
    assert not one.worked.keys() & one.aside.keys()


def test_a_memory_does_not_grow_without_end() -> None:
    memory = Memory()
    for number in range(3 * MOST):
        begin(memory, f"{number}", Rules(), OWNER, 0.0)
        work(memory, f"{number}", 0.0)
        set_aside(memory, f"x{number}", 1.0, 0.0, is_denied=True)
    assert len(memory.worked) == len(memory.aside) == len(memory.probed) == MOST
    assert f"x{3 * MOST - 1}" in memory.aside
    assert len(pickle.dumps(memory)) < 1 << 16


def test_an_attempt_that_began_before_a_value_was_set_aside_does_not_bring_it_back() -> None:
    memory = Memory()
    set_aside(memory, "a", 20.0, 10.0, is_denied=False)
    assert not work(memory, "a", 9.0)
    assert "a" in memory.aside
    assert work(memory, "a", 20.0)
    assert "a" not in memory.aside


# Worker processes


class DeniedError(Exception):
    status_code = 403


def fetch(item: int, key: Any = ("dead", "good")) -> tuple[int, bool]:
    """Refuses one key; a result says in which process it was, and whether that key was asked before it."""
    if key[0] == "dead":
        refused.append(item)
        raise DeniedError
    was_refused = bool(refused)
    refused.clear()
    return os.getpid(), was_refused


refused: list[int] = []


def test_the_processes_of_a_map_learn_from_each_other() -> None:
    bound: Any = Policy(fallback={"arg": "key"}, parallel={"mode": "process", "workers": 2, "progress": False}).apply(
        fetch
    )
    results = bound.map(range(300))
    assert len({process for process, _ in results}) == 2
    assert 1 <= sum(was_refused for _, was_refused in results) <= 5
    assert bound(0)[1] is False  # and so does the parent


def test_a_worker_joins_what_is_known_and_knows_values_by_the_same_hashes(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def ask(key: str) -> str:
        asked[key] += 1
        if key == "dead":
            raise DeniedError
        return key

    policy = Policy(fallback={"arg": "key", "order": "least_loaded"})
    here: Any = policy.apply(ask)
    here(["dead", "b"])
    limits = share_limits(here.binding.resolved().executors, "ask", tmp_path)
    assert limits is not None
    there: Any = bind(policy, ask, provider=limits)
    for each in (here, there) * 3:
        assert each(["dead", "b"]) == "b"
    assert asked == {"dead": 1, "b": 7}
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    assert b"dead" not in files[0].read_bytes()


def test_a_map_on_a_clock_of_its_own_is_not_refused() -> None:
    bound: Any = Policy(fallback={"arg": "key"}, parallel={"mode": "process", "workers": 2, "progress": False}).apply(
        fetch, clock=VirtualClock()
    )
    assert len(bound.map(range(4))) == 4


def test_a_worker_that_cannot_open_the_file_learns_by_itself(tmp_path: Path) -> None:
    policy = Policy(fallback={"arg": "key"})
    here: Any = policy.apply(fetch)
    limits = share_limits(here.binding.resolved().executors, "fetch", tmp_path)
    assert limits is not None
    limits.paths["fallback"] = str(tmp_path / "of another machine")
    limits.held.clear()
    there: Any = bind(policy, fetch, provider=limits)
    assert there(0)[0] == os.getpid()
    assert not there.binding.resolved().executors["values"].home.is_shared
