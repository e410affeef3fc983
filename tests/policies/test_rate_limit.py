from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from opero import ConfigError, KeyedScope, Limit, Policy, RateLimitPolicy
from opero.failures import Kind
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("rate", 10, 10.0),
    ("rate", "50/s", 50.0),
    ("rate", "600/min", 10.0),
    ("limits", [5], (Limit(rate=5),)),
    ("burst", 20, 20),
    ("max_wait", None, None),
    ("max_wait", 0, 0.0),
    ("max_wait", "2s", 2.0),
    ("cost", 2, 2.0),
    ("cost", "tokens", "tokens"),
    ("cost", named.cost, named.cost),
    ("cost", "policies.named:cost", named.cost),
    ("cost_from_result", "usage.total_tokens", "usage.total_tokens"),
    ("cost_from_result", named.is_none, named.is_none),
    ("cost_from_result", "policies.named:is_none", named.is_none),
    ("cost_from_result", None, None),
    ("refund_on", "transient", (Kind.TRANSIENT,)),
    ("refund_on", [], ()),
    ("scope", "function", "function"),
    ("scope", {"by": " tenant "}, KeyedScope(by="tenant")),
    ("scope", '{"by": "url.host", "max_keys": 5}', KeyedScope(by="url.host", max_keys=5)),
    ("scope", {"by": "policies.named:cost", "of": "function"}, KeyedScope(by=named.cost, of="function")),
    ("share", "redis", "redis"),
    ("share", "machine", "machine"),
    ("share_as", " openai ", "openai"),
    ("url", "redis://h", SecretStr("redis://h")),
    ("on_store_error", "closed", "closed"),
    ("store_timeout", "50ms", 0.05),
    ("reserve", "4", 4),
    ("feedback", "no", False),
    ("max_pause", "10m", 600.0),
]
BAD: Bad = [
    ("shadow", "perhaps", "'perhaps' is not a boolean"),
    ("rate", 0, "0 is invalid: use a value > 0"),
    ("rate", -1, "use a value > 0"),
    ("rate", "50/fortnight", "'50/fortnight' is not a rate"),
    ("rate", True, "True is not a rate"),
    ("rate", None, "None is not a rate"),
    ("rate", "adaptive to 5/s", 'use "adaptive", "adaptive up to 200/s" or "service"'),
    ("rate", "adaptive up to 0/s", "'adaptive up to 0/s' is not a rate"),
    ("burst", 0, "greater than or equal to 1"),
    ("burst", 1.5, "1.5 is not an integer"),
    ("max_wait", -1, "-1 is negative"),
    ("cost", 0, "0 is not a cost"),
    ("cost", True, "True is not a cost"),
    ("cost", float("inf"), "inf is not a cost"),
    ("cost", "not a name", "'not a name' is not a cost: use a number > 0, the name of a parameter, or a function"),
    ("cost", None, "None is not a cost"),
    ("scope", "global", "'global' is not one of 'auto', 'profile', 'function' and {by: …}"),
    ("scope", {"of": "profile"}, "by is missing: use {by: …}"),
    ("scope", {"by": "no parameter"}, "'no parameter' is invalid: use the name of a parameter"),
    ("scope", {"by": "policies.named:cots"}, "did you mean 'cost'"),
    ("scope", {"by": "tenant", "max_keys": 0}, "greater than or equal to 1"),
    ("scope", {"by": "tenant", "of": "profil"}, "'profil' is not one of 'profile', 'function'; did you mean 'profile'"),
    ("scope", {"for": "tenant"}, "unknown field 'for'"),
    ("cost_from_result", 5, "5 says nothing about a result"),
    ("cost_from_result", "a b", "'a b' says nothing about a result: use a path such as usage.total_tokens"),
    ("cost_from_result", named.an_hour, "cannot be called with one argument, the result"),
    ("refund_on", "sometimes", "'sometimes'"),
    ("limits", 5, "5 is not a list of limits"),
    ("limits", [{"rate": 5, "name": "a b"}], "'a b' is not the name of a limit"),
    ("limits", [{"rate": 5, "name": "a"}, {"rate": 6, "name": "a"}], "two limits have the name 'a'"),
    ("limits", [{"cost": 5}], "Field required"),
    ("limits", [{"rate": 5, "brust": 5}], "unknown field 'brust' of Limit; did you mean 'burst'"),
    ("limits", [{"rate": 5, "cost": -5, "burst": 0}], "-5 is not a cost"),
    ("limits", [5, "5/fortnight"], "'5/fortnight' is not a rate"),
    ("share", "disk", "'disk' is not one of 'process', 'machine', 'redis'"),
    ("share_as", " ", "' ' is not the name of a shared state"),
    ("url", 5, "a secret must be text, not int"),
    ("on_store_error", "lokal", "did you mean 'local'?"),
    ("store_timeout", 0, "use a value > 0"),
    ("reserve", -1, "greater than or equal to 0"),
    ("feedback", "perhaps", "'perhaps' is not a boolean"),
    ("max_pause", 0, "use a value > 0"),
    ("reserve", 19, "reserve .19. has no effect with a burst of 20: both reserve and the rest of burst"),
]


def beside(field: str) -> dict[str, Any]:
    if field == "limits":
        return {}
    return {"rate": 1, "burst": 20, "share": "redis", **({"cost": "tokens"} if field == "refund_on" else {})}


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(RateLimitPolicy, field, written, held, **beside(field))


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(RateLimitPolicy, field, wrong, told, **beside(field))


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(RateLimitPolicy, GOOD, BAD)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="backend"):
        RateLimitPolicy.model_validate({"rate": 1, "backend": "redis"})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rate": "service", "feedback": False}, "rate: service has no effect with feedback: false"),
        ({"rate": "service", "burst": 5}, "burst has no effect with rate: service"),
        ({"rate": "service", "cost": 2}, "cost has no effect with rate: service"),
        ({"rate": "adaptive", "cost": "tokens"}, "cost has no effect with rate: adaptive"),
        ({"rate": 1, "refund_on": ["transient"]}, "refund_on would have no effect, as a call costs what cost says"),
        ({"rate": "adaptive", "share": "redis"}, "use share: machine, or state the rate"),
    ],
)
def test_options_without_effect_on_a_rate_that_is_found_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RateLimitPolicy(**fields)


@pytest.mark.parametrize(
    ("rate", "fastest"), [("50/s", 50.0), ("adaptive up to 600/min", 10.0), ("adaptive", 1e6), ("service", 1e6)]
)
def test_a_policy_knows_the_fastest_rate(rate: str, fastest: float) -> None:
    assert RateLimitPolicy(rate=rate).fastest == fastest


@pytest.mark.parametrize("written", ["adaptive", " adaptive  up to 200/s", "service"])
def test_a_rate_may_be_found(written: str) -> None:
    assert RateLimitPolicy(rate=written).rate == " ".join(written.split())


def test_a_rate_is_required() -> None:
    with pytest.raises(ValueError, match=r"rate\n  Field required"):  # pydantic's own way to make a model
        RateLimitPolicy.model_validate({"burst": 3})
    with pytest.raises(ConfigError, match="^rate: Field required$"):
        RateLimitPolicy(burst=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="rate: Field required"):
        Policy(rate_limit=True)


@pytest.mark.parametrize("same", [10, "10", "10/s", "600/min", {"rate": 10.0}, {"rate": "10/s", "burst": 1}])
def test_it_is_equal_however_it_is_written(same: Any) -> None:
    assert Policy(rate_limit=same) == Policy.from_options(rate_limit=RateLimitPolicy(rate=10))
    assert hash(Policy(rate_limit=same)) == hash(Policy(rate_limit=RateLimitPolicy(rate=10)))


def test_its_repr_shows_the_rate_always() -> None:
    assert repr(RateLimitPolicy(rate="50/s")) == "RateLimitPolicy(rate=50.0)"
    assert repr(RateLimitPolicy(rate=1, burst=1, max_wait=2)) == "RateLimitPolicy(rate=1.0, max_wait=2.0)"


SEVERAL = [{"rate": "500/min"}, {"rate": "60000/min", "cost": "tokens"}]


@pytest.mark.parametrize(
    "same",
    [
        SEVERAL,
        tuple(SEVERAL),
        ["500/min", SEVERAL[1]],
        [Limit(rate="500/min"), Limit(rate=1000, cost="tokens")],
        {"limits": SEVERAL},
        {"limits": SEVERAL, "burst": 1, "max_wait": None},
        RateLimitPolicy(limits=SEVERAL),
    ],
)
def test_several_limits_are_equal_however_they_are_written(same: Any) -> None:
    policy = Policy(rate_limit=same)
    assert policy == Policy(rate_limit=SEVERAL) == Policy.from_options(rate_limit=same)
    assert hash(policy) == hash(Policy(rate_limit=SEVERAL))
    assert Policy(rate_limit=5).replace(rate_limit=same) == policy
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert policy.rate_limit is not None
    assert policy.rate_limit.names == ("requests", "tokens")
    assert policy.rate_limit.each == policy.rate_limit.limits


def test_a_list_replaces_a_list_and_a_rate_and_a_rate_replaces_a_list() -> None:
    base = Policy(rate_limit={"limits": SEVERAL, "max_wait": 3})
    assert base.replace(rate_limit=[5]).rate_limit == RateLimitPolicy(limits=[5], max_wait=3)
    assert base.replace(rate_limit="5/s").rate_limit == RateLimitPolicy(rate=5, max_wait=3)
    assert base.replace(rate_limit={"rate": 5}).rate_limit == RateLimitPolicy(rate=5, max_wait=3)
    assert Policy(rate_limit=5).replace(rate_limit={"limits": [6]}).rate_limit == RateLimitPolicy(limits=[6])
    assert RateLimitPolicy(rate=5).replace(limits=[6]) == RateLimitPolicy(limits=[6])


def test_the_one_limit_of_a_policy_is_there_with_those_of_a_list() -> None:
    policy = RateLimitPolicy(rate=5, burst=3, cost="n", cost_from_result="size")
    assert policy.each == (Limit(rate=5, burst=3, cost="n", cost_from_result="size"),)
    assert policy.names == ("n",)


def test_limits_have_different_names() -> None:
    limits = [5, "6/min", {"rate": 5}, {"rate": 7, "cost": named.cost}, {"rate": 7, "name": "requests"}]
    assert RateLimitPolicy(limits=limits).names == (
        *("requests-5/s", "requests-0.1/s", "requests-5/s-2", "cost", "requests"),
    )


@pytest.mark.parametrize(("field", "value"), [("burst", 3), ("cost", 2), ("cost_from_result", "size"), ("reserve", 2)])
def test_what_each_limit_has_for_itself_has_no_effect_beside_them(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} has no effect beside limits; remove it"):
        RateLimitPolicy(limits=SEVERAL, share="redis", **{field: value})


def test_a_rate_and_limits_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="rate and limits exclude each other"):
        RateLimitPolicy(rate=5, limits=SEVERAL)
    with pytest.raises(ConfigError, match=r"^limits\.1\.rate: 0 is invalid: use a value > 0$"):
        RateLimitPolicy(limits=[5, {"rate": 0}])
