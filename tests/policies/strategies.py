"""Hypothesis strategies for arbitrary valid policies of every kind, and of a whole `Policy`."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import strategies as st

from opero import (
    AdaptiveTTL,
    BulkheadPolicy,
    CachePolicy,
    CanaryPolicy,
    CircuitBreakerPolicy,
    FailurePolicy,
    FallbackPolicy,
    HedgePolicy,
    HooksPolicy,
    ParallelPolicy,
    Policy,
    PriorityPolicy,
    RateLimitPolicy,
    RetryPolicy,
    ThrottlePolicy,
    TimeoutPolicy,
)
from opero.policies.quantities import parse_duration
from policies import named

counts = st.integers(0, 1000)
positive_counts = st.integers(1, 1000)
shares = st.floats(0.001, 1)
exceptions = st.lists(
    st.sampled_from([OSError, "KeyError", "json:JSONDecodeError", named.QuotaError, named.QuotaError.HourlyError]),
    max_size=3,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def durations(draw: st.DrawFn, least: float = 0.0, most: float = 1e6) -> Any:
    """A duration, however written."""
    seconds = draw(st.floats(least, most, allow_subnormal=False))
    whole = int(seconds)
    return draw(
        st.sampled_from(
            [seconds, *([whole, f"{whole}s", datetime.timedelta(seconds=whole)] if whole >= max(least, 1) else [])]
        )
    )


def given(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required or {}, optional={"enabled": st.booleans(), **optional})


scopes = st.sampled_from(["auto", "profile", "function"]) | st.fixed_dictionaries(
    {"by": st.sampled_from(["tenant", "url.host", "policies.named:cost", named.cost])},
    optional={"of": st.sampled_from(["profile", "function"]), "max_keys": positive_counts},
)


def _without_contradictions(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a cache, without those that cannot go with the others, and with those that these need."""
    ttl = CachePolicy(ttl=fields.get("ttl")).ttl
    least = ttl.cold if isinstance(ttl, AdaptiveTTL) else ttl
    early = fields.get("early_refresh")
    idle = set() if fields.get("errors") else {"error_ttl"}
    if ttl is None:
        idle |= {"stale_ttl", "early_refresh", "ttl_jitter"}
    elif early is not None and isinstance(least, float) and parse_duration(early) >= least:
        idle.add("early_refresh")
    needed = {"ttl": None} if fields.get("backend") == "disk" else {}
    return needed | {name: value for name, value in fields.items() if name not in idle}


retry = given(
    retries=counts,
    backoff_factor=st.floats(1, 100),
    min_delay=durations(most=10),
    max_delay=durations(least=10),
    jitter=st.booleans() | st.sampled_from(["full", "equal", "none"]),
    retry_on=exceptions,
    retry_on_status=st.none() | st.lists(st.integers(100, 599) | st.sampled_from(["4xx", "5xx"]), max_size=3),
    retry_if_result=st.sampled_from([None, named.is_none, "policies.named:is_none"]),
    retry_after=st.booleans(),
    reraise=st.booleans(),
    budget=st.sampled_from([None, False, True, 0.1, "10%"]),
    amplification=st.sampled_from(["guard", "allow"]),
    idempotent=st.booleans(),
    share=st.sampled_from(["process", "redis"]),
).map(lambda fields: RetryPolicy(**{**fields, **({"share": "process"} if fields.get("budget") is False else {})}))
cache = given(
    ttl=st.none()
    | durations(least=0.001)
    | st.sampled_from([named.an_hour, "policies.named:an_hour", "adaptive", AdaptiveTTL(cold=1), {"hot": "1d"}]),
    backend=st.sampled_from(["memory", "disk", "dogpile.cache.null"]),
    key=st.sampled_from([None, named.cost]),
    namespace=st.text(min_size=1, max_size=5),
    max_size=positive_counts,
    stale_ttl=st.none() | durations(least=0.001),
    early_refresh=st.none() | durations(least=0.001),
    ttl_jitter=st.floats(0, 1),
    cache_if=st.sampled_from([None, named.is_none]),
    errors=st.booleans() | exceptions,
    error_ttl=st.none() | durations(least=0.001),
    share_errors=st.booleans(),
    tags=st.lists(st.sampled_from(["users", "user:{user_id}", "{a.b[0]}"]), max_size=2),
    cache_dir=st.sampled_from([None, "/tmp/somewhere"]),
    store_timeout=durations(least=0.001),
    lock_timeout=durations(least=0.001),
    serializer=st.sampled_from([None, "json", "pickle", "signed_pickle"]),
    allow_unsigned_pickle=st.booleans(),
).map(lambda fields: CachePolicy(**_without_contradictions(fields)))
rate_limit = given(
    {"rate": st.floats(0.001, 1e6) | st.integers(1, 1000).map(lambda permits: f"{permits}/min")},
    burst=positive_counts,
    max_wait=st.none() | durations(),
    cost=st.floats(0.1, 100) | st.sampled_from(["tokens", "policies.named:cost", named.cost]),
    scope=scopes,
    feedback=st.booleans(),
    max_pause=durations(least=0.001),
).map(lambda fields: RateLimitPolicy(**fields)) | given(
    {
        "limits": st.lists(
            st.integers(1, 1000).map(lambda permits: f"{permits}/min")
            | st.fixed_dictionaries(
                {"rate": st.floats(0.001, 1e6)},
                optional={
                    "burst": positive_counts,
                    "cost": st.sampled_from([1, "tokens", named.cost]),
                    "cost_from_result": st.sampled_from([None, "usage.tokens", named.is_none]),
                },
            ),
            min_size=1,
            max_size=3,
        )
    },
    max_wait=st.none() | durations(),
    scope=scopes,
).map(lambda fields: RateLimitPolicy(**fields))
rate_limit = rate_limit | st.sampled_from(
    [RateLimitPolicy(rate=each, max_wait=5) for each in ("service", "adaptive", "adaptive up to 1000/min")]
)
timeout = st.one_of(
    given({"total": durations(least=0.001)}),
    given({"attempt": durations(least=0.001)}),
    given({"total": durations(least=10), "attempt": durations(least=0.001, most=10)}),
    given({"idle": durations(least=0.001)}, attempt=durations(least=0.001), enforce=st.sampled_from(["wait"])),
    given({"total": durations(least=0.001)}, enforce=st.sampled_from(["interrupt", "wait", "none"])),
).map(lambda fields: TimeoutPolicy(**fields))
circuit_breaker = st.one_of(
    given(consecutive_failures=positive_counts, open_for=durations(least=0.001), half_open_calls=positive_counts),
    given(
        {"failure_rate": shares},
        consecutive_failures=st.none() | positive_counts,
        window=st.integers(10, 1000) | st.integers(1, 1000).map(lambda seconds: f"{seconds}s") | st.floats(0.001, 1000),
        min_calls=st.none() | st.integers(1, 10),
        slow_call=durations(least=0.001),
        ignore=exceptions,
        scope=scopes,
    ),
    given({"slow_call": durations(least=0.001), "slow_rate": shares}),
    given(
        {"half_open_calls": st.integers(4, 50), "half_open_rate": st.floats(0.25, 0.75) | st.sampled_from(["50%"])},
        open_for=durations(least=0.001, most=10),
        open_for_max=st.none() | durations(least=60),
    ),
).map(lambda fields: CircuitBreakerPolicy(**fields))
limits = positive_counts | st.just("adaptive")
bulkhead = given({"max_concurrent": limits}, max_wait=st.none() | durations(), scope=scopes).map(
    lambda fields: BulkheadPolicy(**fields)
)
of_values = {"remember": st.booleans() | durations()}
orders = st.sampled_from(["in_order", "round_robin", "least_loaded"])
fallback = st.one_of(
    given({"arg": st.text(min_size=1)}, **of_values, order=orders),
    given(
        {
            "arg": st.text(min_size=1),
            "order": st.just("weighted"),
            "weights": st.lists(st.floats(0.1, 100) | positive_counts, min_size=1, max_size=3),
        },
        **of_values,
    ),
    given({"default": json_values}, arg=st.none() | st.text(min_size=1)),
    given({"function": st.sampled_from([named.cost, "policies.named:cost"])}),
).map(lambda fields: FallbackPolicy(**fields))
failures = given(
    transient=st.lists(st.sampled_from([404, "409", "policies.named:QuotaError"]), max_size=2),
    permanent=st.lists(st.sampled_from([410, "5xx", KeyError]), max_size=2),
    denied=st.just(PermissionError),
    control=st.just("ValueError"),
    classify=st.sampled_from([None, named.is_none, "policies.named:is_none"]),
    responses=st.booleans(),
).map(lambda fields: FailurePolicy(**fields))
hedge = given(
    after=st.sampled_from(["p50", "p95", "P99.9", " p99 "]) | durations(least=0.001),
    max=positive_counts,
    budget=st.floats(0.001, 1) | st.sampled_from(["5%", "100%"]),
).map(lambda fields: HedgePolicy(**fields))
heard = st.sampled_from([None, named.hears, "policies.named:hears", [named.hears, "builtins:print"]])
hooks = given(on_retry=heard, on_success=heard, on_open=heard).map(lambda fields: HooksPolicy(**fields))
parallel = given(
    mode=st.sampled_from(["auto", "thread", "process", "async", "async_process", "dask", "ray"]),
    workers=st.just("auto") | positive_counts,
    ordered=st.booleans(),
    progress=st.just("auto") | st.booleans(),
    batch=st.none() | st.booleans(),
    batch_size=st.none() | positive_counts,
    on_error=st.sampled_from(["raise", "return", "skip"]),
    deadline=st.none() | durations(least=0.001),
    max_failures=st.none() | st.integers(0, 100) | st.sampled_from([0.25, "5%"]),
    worker_retries=st.integers(0, 5),
    concurrency=positive_counts,
    window=st.just("auto") | positive_counts,
    executor=st.sampled_from([None, named.cost, "concurrent.futures:ThreadPoolExecutor"]),
    initializer=st.sampled_from([None, named.an_hour, "policies.named:an_hour"]),
    address=st.sampled_from([None, "tcp://127.0.0.1:8786"]),
    max_memory=st.none() | st.integers(1, 10**12) | st.sampled_from(["512MB", "2GiB"]),
).map(lambda fields: ParallelPolicy(**fields))

throttle = given(
    ratio=st.floats(1.01, 100) | st.sampled_from([2, "1.5"]),
    window=durations(least=0.001),
    trip_on=st.sampled_from(["throttled", ["transient", ConnectionError]]),
    scope=st.sampled_from(["profile", "function"]),
).map(lambda fields: ThrottlePolicy(**fields))
priority = given({"level": st.sampled_from(["critical", "normal", "background"])}).map(
    lambda fields: PriorityPolicy(**fields)
)

canary = given(
    {"share": st.floats(0, 1) | st.sampled_from(["5%", "0%", 0, "0.25"]), "policy": st.sampled_from(["next", "b"])},
    by=st.none() | st.just("user"),
).map(lambda fields: CanaryPolicy(**fields))

kinds = {
    "retry": retry,
    "cache": cache,
    "rate_limit": rate_limit,
    "timeout": timeout,
    "circuit_breaker": circuit_breaker,
    "bulkhead": bulkhead,
    "throttle": throttle,
    "priority": priority,
    "fallback": fallback,
    "hedge": hedge,
    "failures": failures,
    "hooks": hooks,
    "parallel": parallel,
    "canary": canary,
}
any_policy = st.one_of(*kinds.values())
whole_policies = st.fixed_dictionaries({}, optional={kind: st.none() | each for kind, each in kinds.items()}).map(
    lambda fields: Policy(**fields)
)
