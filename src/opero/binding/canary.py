"""A canary: each call runs on the pipeline of a function's profile, or for a share of the calls on that of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from opero.binding.first_call import reraise
from opero.binding.fit import TO_CHOOSE
from opero.binding.pipeline import build, migrate_limits, migrate_state, rebuild
from opero.dataclass import dataclass
from opero.errors import ConfigError
from opero.runtime.functions import argument_of
from opero.runtime.generators import Started

if TYPE_CHECKING:
    from opero.binding.invocation import Pipeline
    from opero.binding.making import ExecutorProvider
    from opero.binding.target import Target
    from opero.executors.call import Call
    from opero.observe.stats import Stats
    from opero.policies.canary import CanaryPolicy
    from opero.policies.policy import Policy

    StatsOf = Callable[[str], Stats]
    """Returns what counts the calls of a function on another profile."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a share of the calls of a function runs on. Equal if nothing changes for the function.

    Attributes:
        canary: which calls that are.
        policy: the policy of the function under the other profile.
        profile: the policy of that profile itself.
        further: the canary of the other profile, if it has one.
        provider: returns the executors that functions of the other profile share.
    """

    canary: CanaryPolicy
    policy: Policy
    profile: Policy
    further: Trial | None
    provider: ExecutorProvider | None = field(compare=False)


@dataclass(frozen=True, slots=True)
class Canary:
    """The two pipelines of a function.

    Attributes:
        trial: what it was built from.
        main: the pipeline of the function's own profile, on which its maps run.
        other: that of the canary.
    """

    trial: Trial
    main: Pipeline
    other: Pipeline


def main_of(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline of the function's own profile."""
    return pipeline if pipeline.canary is None else pipeline.canary.main


def build_with(
    target: Target,
    policy: Policy,
    provider: ExecutorProvider | None,
    before: Pipeline | None,
    profile: str,
    trial: Trial | None,
    stats_of: StatsOf,
    cache: Any = None,
) -> Pipeline:
    """Build the pipeline of a function, with a canary if there is a trial. Arguments are as for `build`.

    Raises:
        ConfigError: a policy does not fit the function.
    """
    main = build(target, policy, provider, before, profile, cache)
    if trial is None:
        return main
    if policy.active("cache") != trial.policy.active("cache"):
        raise ConfigError(
            f"{target.name}: its cache under the canary {trial.canary.policy!r} is another than under "
            f"{profile or 'its own policy'!r}: both answer from one cache, so give them the same"
        )
    name = trial.canary.policy
    held = None if before is None or before.canary is None else before.canary
    other = build_with(
        replace(target, stats=stats_of(name)),
        trial.policy,
        trial.provider,
        held.other if held is not None and held.trial.canary.policy == name else None,
        name,
        trial.further,
        stats_of,
        main.cache,
    )
    return _choosing(target, main, other, trial)


def rebuild_with(target: Target, before: Pipeline) -> Pipeline:
    """Build the pipelines of a target whose function is another one now, with the policies and executors of before."""
    canary = before.canary
    if canary is None:
        return rebuild(target, before)
    main = rebuild(target, canary.main)
    other = rebuild_with(replace(target, stats=canary.other.stats), canary.other)
    return _choosing(target, main, other, canary.trial)


def migrate(target: Target, old: Pipeline, new: Pipeline, *, is_other: bool = False) -> Pipeline:
    """Move the state that belongs to one function; return the pipeline to put in force.

    Args:
        target: the function.
        old, new: the pipelines.
        is_other: whether they are those of a canary, whose cache is that of the function's own profile.
    """
    old_main, new_main = main_of(old), main_of(new)
    if is_other:
        migrate_limits(old_main, new_main)
    else:
        new_main = migrate_state(old_main, new_main)
    if new.canary is None:
        return new_main
    other = new.canary.other
    if old.canary is not None and old.canary.trial.canary.policy == new.canary.trial.canary.policy:
        other = migrate(target, old.canary.other, other, is_other=True)
    return _choosing(target, new_main, other, new.canary.trial)


def put_in_force(old: Pipeline | None, new: Pipeline) -> None:
    """Have the statistics of a pipeline, and of its canaries, count its attempts and call its hooks from now on."""
    before, after = _by_stats(old), _by_stats(new)
    for stats in [*after, *(each for each in before if each not in after)]:
        pipeline = after.get(stats)
        if pipeline is not None:
            stats.count_bare(pipeline.function is not None)
        if stats.hooks is not None or (pipeline is not None and pipeline.hooks is not None):
            from opero.binding import hooking

            hooking.put_in_force(stats, before.get(stats), pipeline)


def _by_stats(pipeline: Pipeline | None) -> dict[Stats, Pipeline]:
    """Return the pipelines between which calls choose, each by what counts its calls."""
    found: dict[Stats, Pipeline] = {}
    while pipeline is not None:
        main = main_of(pipeline)
        found[main.stats] = main
        pipeline = None if pipeline.canary is None else pipeline.canary.other
    return found


def _choosing(target: Target, main: Pipeline, other: Pipeline, trial: Trial) -> Pipeline:
    """Return the pipeline that chooses between two for each call. What a memory cache answers is not chosen."""
    picks = _picker(target, trial.canary)
    here, there = main.stats, main_of(other).stats

    def choose(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not picks(args, kwargs):
            try:
                return main.checked(main.start(call, args, kwargs))
            except Exception as error:  # noqa: BLE001  # decided in fail
                return main.fail(error, args, kwargs, call)
        here.hand_over(call, there)
        try:
            result = other.checked(other.start(call, args, kwargs))
        except Exception as error:  # noqa: BLE001  # as above
            return other.fail(error, args, kwargs, call)
        if type(result) is Started and result.on_failure is None:
            result.on_failure = other.stream_failed
        return result

    async def choose_async(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not picks(args, kwargs):
            try:
                return main.checked(await main.start(call, args, kwargs))
            except Exception as error:  # noqa: BLE001  # as above
                return await main.fail(error, args, kwargs, call)
        here.hand_over(call, there)
        try:
            result = other.checked(await other.start(call, args, kwargs))
        except Exception as error:  # noqa: BLE001  # as above
            return await other.fail(error, args, kwargs, call)
        if type(result) is Started and result.on_failure is None:
            result.on_failure = other.stream_failed
        return result

    return replace(
        main,
        function=None,
        layer=choose_async if target.is_async else choose,
        check=None,
        fail=reraise,
        is_exact=main.is_exact or other.is_exact,
        canary=Canary(trial, main, other),
    )


# Which calls


def _picker(target: Target, canary: CanaryPolicy) -> Callable[[tuple[Any, ...], Mapping[str, Any]], bool]:
    share = canary.share
    if canary.by is None:
        clock = target.clock  # in a forked child it has another generator
        return lambda args, kwargs: clock.random.random() < share
    name = canary.by
    position, default = argument_of(target.function, name, TO_CHOOSE)
    chances = place_among(canary.policy)

    def picks(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        value = args[position] if position < len(args) else kwargs.get(name, default)
        return chances(value) < share

    return picks


def place_among(canary: str) -> Callable[[object], float]:
    """Return what gives a value its place between 0 and 1, the same in all processes for values of equal text.

    Args:
        canary: the name of the profile; each orders the values differently.
    """
    begun = blake2b(canary.encode(), digest_size=8)
    whole = float(2**64)

    def place(value: object) -> float:
        try:
            text = str(value)
        except Exception:  # noqa: BLE001  # a user's class may raise anything, and its calls go on
            text = type(value).__qualname__
        digest = begun.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest()) / whole

    return place
