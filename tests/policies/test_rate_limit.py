from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from opero import ConfigError, Policy, RateLimitPolicy
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("rate", 10, 10.0),
    ("rate", "50/s", 50.0),
    ("rate", "600/min", 10.0),
    ("burst", 20, 20),
    ("max_wait", None, None),
    ("max_wait", 0, 0.0),
    ("max_wait", "2s", 2.0),
    ("cost", 2, 2.0),
    ("cost", "tokens", "tokens"),
    ("cost", named.cost, named.cost),
    ("cost", "policies.named:cost", named.cost),
    ("scope", "function", "function"),
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
    ("scope", "global", "'global' is not one of 'profile', 'function'"),
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


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(RateLimitPolicy, field, written, held, rate=1, burst=20, share="redis")


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(RateLimitPolicy, field, wrong, told, rate=1, burst=20, share="redis")


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
