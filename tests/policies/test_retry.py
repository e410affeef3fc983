from __future__ import annotations

import datetime
from typing import Any

import pytest
from pydantic import SecretStr

from opero import Policy, RetryPolicy
from opero.failures import Kind
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("retries", 0, 0),
    ("retries", "7", 7),
    ("backoff_factor", 1, 1.0),
    ("backoff_factor", 2.5, 2.5),
    ("min_delay", 0, 0.0),
    ("min_delay", "250ms", 0.25),
    ("max_delay", "1m", 60.0),
    ("max_delay", datetime.timedelta(minutes=2), 120.0),
    ("jitter", False, "none"),
    ("jitter", True, "full"),
    ("jitter", "equal", "equal"),
    ("jitter", "none", "none"),
    ("jitter", " Off ", "none"),
    ("jitter", "1", "full"),
    ("retry_on", OSError, (OSError,)),
    ("retry_on", ["KeyError", OSError], (KeyError, OSError)),
    ("retry_on", ["transient", Kind.DENIED], (Kind.TRANSIENT, Kind.DENIED)),
    ("retry_on_status", [429, "5xx"], (429, "5xx")),
    ("retry_on_status", 503, (503,)),
    ("retry_if_result", named.is_none, named.is_none),
    ("retry_if_result", "policies.named:is_none", named.is_none),
    ("retry_after", False, False),
    ("reraise", True, True),
    ("budget", "10%", 0.1),
    ("budget", 1, 1.0),
    ("budget", "1", 1.0),
    ("budget", True, 0.2),
    ("budget", "off", False),
    ("budget", False, False),
    ("amplification", "allow", "allow"),
    ("idempotent", "no", False),
    ("share", "machine", "machine"),
    ("share", "redis", "redis"),
    ("share_as", " orders ", "orders"),
    ("url", "redis://127.0.0.1:6379/0", SecretStr("redis://127.0.0.1:6379/0")),
    ("store_timeout", "1s", 1.0),
]
BAD: Bad = [
    ("shadow", "perhaps", "'perhaps' is not a boolean"),
    ("retries", -1, "greater than or equal to 0"),
    ("retries", True, "True is not a number"),
    ("retries", 1.5, "1.5 is not an integer: use an integer >= 0"),
    ("retries", "many", "'many' is invalid: use an integer >= 0"),
    ("retries", None, "None is not an integer"),
    ("backoff_factor", 0.5, "greater than or equal to 1"),
    ("backoff_factor", float("nan"), "."),
    ("min_delay", -0.1, "-0.1 is negative: use a value >= 0"),
    ("min_delay", "31s", "min_delay .31s. is greater than max_delay .30s.; lower min_delay or raise max_delay"),
    ("max_delay", "50ms", "min_delay .100ms. is greater than max_delay .50ms."),
    ("max_delay", "soon", "'soon' is not a duration"),
    ("jitter", "perhaps", "'perhaps' is invalid: use 'full', 'equal', 'none', true .full. or false .none."),
    ("jitter", "eqal", "did you mean 'equal'"),
    ("jitter", 0.5, "0.5 is invalid"),
    ("jitter", None, "None is invalid"),
    ("retry_on", "ConectionError", "did you mean 'ConnectionError'"),
    ("retry_on", KeyboardInterrupt, "KeyboardInterrupt is never retried"),
    ("retry_on_status", 999, "999 is not an HTTP status"),
    ("retry_if_result", 3, "3 is not callable"),
    ("retry_after", "x", "is not a boolean: use true or false"),
    ("reraise", 2, "is not a boolean: use true or false"),
    ("budget", 2, "2 is invalid: use a number > 0 and <= 1, such as 0.2, or a percentage"),
    ("budget", 0, "or false for no budget"),
    ("budget", "some", "'some' is invalid"),
    ("budget", float("nan"), "is invalid"),
    ("amplification", "gard", "did you mean 'guard'"),
    ("amplification", True, "True is not one of 'guard', 'allow'"),
    ("idempotent", "perhaps", "'perhaps' is not a boolean"),
    ("share", "x", "'x' is not one of 'process', 'machine', 'redis'"),
    ("share_as", 5, "5 is not the name of a shared state"),
    ("url", 5, "a secret must be text, not int"),
    ("store_timeout", 0, "use a value > 0"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(RetryPolicy, field, written, held, **({} if field == "budget" else {"share": "redis"}))


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(RetryPolicy, field, wrong, told)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(RetryPolicy, GOOD, BAD)


def test_the_defaults_are_those_of_the_design() -> None:
    policy = RetryPolicy()
    assert policy.model_dump() == {
        "enabled": True,
        "shadow": False,
        "retries": 3,
        "backoff_factor": 1.5,
        "min_delay": 0.1,
        "max_delay": 30.0,
        "jitter": "full",
        "retry_on": (Kind.TRANSIENT, Kind.THROTTLED, Kind.UNKNOWN),
        "retry_on_status": None,
        "retry_if_result": None,
        "retry_after": True,
        "reraise": False,
        "budget": None,
        "amplification": "guard",
        "idempotent": True,
        "share": "process",
        "share_as": None,
        "url": None,
        "store_timeout": 0.25,
    }
    assert repr(policy) == "RetryPolicy()"


@pytest.mark.parametrize("same", [5, "5", {"retries": 5}, {"retries": "5", "jitter": True}, RetryPolicy(retries=5)])
def test_it_is_equal_however_it_is_written(same: Any) -> None:
    policy = Policy(retry=same)
    assert policy == Policy(retry=RetryPolicy(retries=5))
    assert hash(policy) == hash(Policy(retry=RetryPolicy(retries=5)))
    assert policy.retry == RetryPolicy.model_validate(5)


def test_its_repr_shows_only_what_differs_from_the_defaults() -> None:
    assert (
        repr(RetryPolicy(retries=5, min_delay=0.1, retry_on=OSError)) == "RetryPolicy(retries=5, retry_on=(OSError,))"
    )
    assert repr(RetryPolicy(retry_on_status=[429, "5xx"])) == "RetryPolicy(retry_on_status=(429, '5xx'))"
    assert repr(RetryPolicy(retry_if_result=named.is_none)) == "RetryPolicy(retry_if_result=policies.named.is_none)"
    assert "<lambda>" in repr(RetryPolicy(retry_if_result=lambda result: result))
    assert str(RetryPolicy(jitter=False)) == "RetryPolicy(jitter='none')"


def test_replace_judges_the_policy_as_a_whole() -> None:
    policy = RetryPolicy(min_delay=1)
    assert policy.replace(max_delay=2).min_delay == 1
    with pytest.raises(ValueError, match="is greater than max_delay"):
        policy.replace(max_delay=0.5)
    with pytest.raises(ValueError, match="unknown field 'retry' of RetryPolicy"):
        policy.replace(retry=3)
