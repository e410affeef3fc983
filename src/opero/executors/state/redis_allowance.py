"""The allowance of a retry budget in redis, which the processes of all machines share."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, ClassVar

from opero.executors.state.allowance import FLOOR, WINDOW, Account, Allowance, Terms, draw, merged, opened
from opero.executors.state.redis_scripts import SECOND, TIME
from opero.executors.state.redis_store import Command
from opero.runtime.forking import renew_in_child
from opero.runtime.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.executors.state.redis_store import RedisStore
    from opero.policies.retry import RetryPolicy

# The account is one value: when its terms have been configured; the share and the reserve that they say; the account.
# One that is missing has nothing but a full reserve.
DRAW = f"""
local told, share, most, lasts = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local calls, retries = tonumber(ARGV[5]), tonumber(ARGV[6])
{TIME}
local held = redis.call('GET', KEYS[1])
local since, calls_now, retries_now, calls_before, retries_before, reserve, filled = now, 0, 0, 0, 0, most, now
if held then
  local before, their_share, their_most
  before, their_share, their_most, since, calls_now, retries_now, calls_before, retries_before, reserve, filled =
    cmsgpack.unpack(held)
  if before > told then
    told, share, most = before, their_share, their_most
  end
end
local window = {WINDOW * SECOND:.0f}
reserve = math.min(most, reserve + math.max(0, now - filled) / {SECOND} * {FLOOR!r})
calls_now = calls_now + calls
local passed = now - since
if passed >= 2 * window then
  calls_before, retries_before = calls_now * window / passed, 0
  since, calls_now, retries_now = now, 0, 0
elseif passed >= window then
  calls_before, retries_before = calls_now * window / passed, retries_now
  since, calls_now, retries_now = since + window, calls_now * (1 - window / passed), 0
end
local rest = 1 - (now - since) / window
local paid = share * (calls_now + rest * calls_before) - (retries_now + rest * retries_before)
local is_allowed = 1
if paid >= retries then
  retries_now = retries_now + retries
elseif reserve >= retries then
  reserve = reserve - retries
else
  is_allowed = 0
end
redis.call('SET', KEYS[1], cmsgpack.pack(told, share, most, since, calls_now, retries_now, calls_before, retries_before,
  reserve, now), 'PX', lasts)
return {{is_allowed, string.format('%.17g', share), string.format('%.17g', most)}}
"""
"""The same as `draw`."""


class RedisAllowance(Allowance):
    """Keeps the account in redis, with the newest terms. It is asked only when a retry is.

    While redis cannot be used, the process has an account of its own, which begins with a full reserve.

    Args:
        store: the redis.
        key: the name of the account there.
        policy: what it is for.
        monotonic: tells the time.
        name: what messages begin with.
    """

    is_shared: ClassVar[bool] = True

    def __init__(
        self, store: RedisStore, key: str, policy: RetryPolicy, monotonic: Callable[[], float], name: str
    ) -> None:
        super().__init__()
        self.blocks = True
        self.lock = threading.RLock()
        self.store = store
        self.name = name
        self.key = f"opero:{{{key}}}".encode()
        self._told = 0
        self._has_warned = False
        self.apply(policy)
        self.account = opened(monotonic(), self.terms)
        renew_in_child(self, "lock")

    @property
    def trouble(self) -> str:
        """Why the server cannot be used, in one line; "" while it can."""
        return self.store.trouble

    def draw(self, now: float, calls: float, retries: float) -> bool:
        with self.lock:
            self.check()
            command = self._command
        reply = self.store.ask(command, self._probe, calls, retries)
        with self.lock:
            if reply is None:
                is_allowed, self.account = draw(self.account, now, self.terms, calls, retries)
                return is_allowed
        is_allowed, *in_force = reply
        self._learn(Terms(*map(float, in_force)))
        return bool(is_allowed)

    def _learn(self, terms: Terms) -> None:
        if terms != self.terms and not self._has_warned:
            self._has_warned = True
            text = (
                "%s: its retry budget differs between the processes that share it: %.4g%% of the calls, and %d at "
                "once, are in force, which have been configured later than %.4g%% and %d"
            )
            both = (each for found in (terms, self.terms) for each in (found.share * 100, found.reserve))
            log("limit_differs", text, self.name, *both, policy=self.name)

    def _probe(self) -> None:
        self.store.run(self._command, 0, 0)

    def apply(self, policy: RetryPolicy) -> None:
        with self.lock:
            self.terms = Terms.of(policy)
            self._told = max(self._told + 1, time.time_ns() // 1000)
            lasts = int(1000 * max(2 * WINDOW, self.terms.reserve / FLOOR))  # then nothing of it matters any more
            self._command = Command(DRAW, (self.key,), (self._told, *map(repr, self.terms), lasts), 2)

    def values(self) -> tuple[Account, Terms]:
        return self.account, self.terms

    def receive(self, values: tuple[Account, Terms]) -> None:
        """What has been counted in this process counts again while redis cannot be used."""
        self.account = merged(self.account, values[0])
