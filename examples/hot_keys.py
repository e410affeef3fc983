"""A cache for prices: popular keys live longer, old prices are better than none, and a change clears its group.

    python examples/hot_keys.py

A virtual clock lets the hours pass at once; without `clock=` the same code runs in real time.
"""

from __future__ import annotations

from collections import Counter

from opero import AdaptiveTTL, clear_cache, opero
from opero.testing import VirtualClock

clock = VirtualClock()
asked: Counter[str] = Counter()
is_down = False


@opero(
    retries=0,
    cache_ttl=AdaptiveTTL(cold="1m", warm="10m", hot="1h", warm_after=3, hot_after=10),
    cache_tags="shelf:{shelf}",
    clock=clock,
)
def price(article: str, shelf: str) -> float:
    asked[article] += 1
    return 1.0 + asked[article]


@opero(retries=0, cache_ttl="1h", cache_stale_ttl="1d", clock=clock)
def exchange_rate(currency: str) -> float:
    if is_down:
        raise ConnectionError("the bank is closed")
    return 7.5


def main() -> None:
    global is_down
    for _ in range(20):  # two minutes pass between requests for tea; for salt, an hour
        price("tea", "hot drinks")
        clock.advance(120)
    for _ in range(20):
        price("salt", "spices")
        clock.advance(3600)
    print(f"of 20 requests each, {asked['tea']} for tea and {asked['salt']} for salt reached the function")

    exchange_rate("DKK")
    clock.advance(7200)
    is_down = True
    print(f"the bank is closed, and the rate of two hours ago still serves: {exchange_rate('DKK')}")

    price("tea", "hot drinks")
    print(f"tea costs {price.cache_get('tea', 'hot drinks')}")
    clear_cache(tags="shelf:hot drinks")
    print(f"after its shelf was cleared: {price.cache_get('tea', 'hot drinks')}; {price.cache_info()}")


if __name__ == "__main__":
    main()
