"""The scripts by which redis keeps the budgets of rate limits."""

from __future__ import annotations

from opero.executors.state.pace import FIRST, RAMP
from opero.policies.rate_limit import UNLIMITED

SECOND = 1_000_000
"""Microseconds, in which the scripts compute: whole numbers, by the clock of the server."""
LASTS = 60_000
"""Milliseconds for which the terms outlast the budget."""
HANDOVER = 300_000
"""Microseconds after the server is back before which no permit falls due: by then, each process has noticed, and uses
none by itself any more."""
# The budget is one value: when the next permit falls due; until when processes may go on by themselves; the terms in
# force, and since when they hold; when the latest pause ends, and how long the ramp after it takes. A budget that is
# missing is full: its value lasts until it is.
STEP = f"""
local function step(moment, time, interval, resume, ramp)
  local into = moment - resume
  if ramp <= 0 or into >= ramp then
    return time
  end
  local first = interval <= {SECOND / UNLIMITED!r} and math.min({FIRST}, interval / {SECOND}) or {FIRST}
  local growth = -math.log(first) / ramp
  local begun = math.exp(growth * math.max(0, into))
  local after = math.log(begun + time * growth / first) / growth
  if after > ramp then
    after = ramp + time - (1 / first - begun) * first / growth
  end
  return after - into
end
"""
"""The same as `Pace.step`."""
BOOK = f"""{STEP}
local since, interval, burst, period = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local cost, patience, ahead = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_owed, lost, debt, used, last, own = false, -1, 0, 0, 0, 0
if ARGV[9] then
  is_owed, lost, debt = ARGV[9] == '1', tonumber(ARGV[10]), tonumber(ARGV[11])
  used, last, own = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
end
local time = redis.call('TIME')
local now = time[1] * {SECOND} + time[2]
local due, alone, told, before, most, resume, ramp = 0, 0, 0, 0, 0, 0, 0
local held = redis.call('GET', KEYS[1])
if held then
  due, alone, told, before, most, resume, ramp = cmsgpack.unpack(held)
end
local others = false
if not held or told == since or (before == interval and most == burst) then
  told = math.max(told, since)
elseif told < since then
  local unit = math.min(cost, burst, most)
  local saved = due > now and most - (due - now) / before or most
  if saved >= unit then
    due = now + (burst - saved) * interval
  else
    due = due + (burst - unit) * interval - (most - unit) * before
  end
  told = since
else
  others = {{tostring(before), tostring(most)}}
  interval, burst = before, most
end
if ahead > 0 and (is_owed or not held) then
  due = math.max(due, now + ahead)
end
if lost >= 0 and alone < now - lost then
  alone = now + {HANDOVER}
end
due = math.ceil(math.max(due, now, alone) + debt)
local batch = tonumber(ARGV[8])
if batch > cost then
  cost = math.max(cost, math.min(batch, math.floor((burst - (due - now) / interval) / cost) * cost))
end
local wait, after = cost >= burst and due - now or math.ceil(due - (burst - cost) * interval) - now, due
wait = math.max(0, alone - now, wait)
if wait <= patience then
  after = math.ceil(due + step(now + wait, cost * interval, interval, resume, ramp))
end
redis.call('SET', KEYS[1], cmsgpack.pack(after, alone, told, interval, burst, resume, ramp), 'PX',
  math.ceil((after - now) / 1000) + {LASTS})
local part = false
if used > 0 then
  local number = math.floor(now / period)
  local total = redis.call('HINCRBY', KEYS[2], number, used)
  if total == used then
    redis.call('HDEL', KEYS[2], number - 2, 'claimed' .. number - 2)
  end
  redis.call('PEXPIRE', KEYS[2], math.ceil(3 * period / 1000))
  part = {{number, 0, 0}}
  if last == number - 1 then
    local claimed = redis.call('HINCRBY', KEYS[2], 'claimed' .. number, own)
    part = {{number, claimed - own, tonumber(redis.call('HGET', KEYS[2], last)) or 0}}
  end
end
if others or part or resume > 0 then
  return {{wait, due, after, now, others, part, resume}}
end
return {{wait, due, after, now}}
"""
REFUND = """
local held = redis.call('GET', KEYS[1])
if held then
  local due, alone, told, interval, burst, resume, ramp = cmsgpack.unpack(held)
  if due == tonumber(ARGV[1]) then
    due = tonumber(ARGV[2])
    redis.call('SET', KEYS[1], cmsgpack.pack(due, alone, told, interval, burst, resume, ramp), 'KEEPTTL')
    return 1
  end
end
return 0
"""
PAUSE = f"""
local since, interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local unit, ahead, what = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local time = redis.call('TIME')
local now = time[1] * {SECOND} + time[2]
local due, alone, told, before, most, resume, ramp = 0, 0, since, interval, burst, 0, 0
local held = redis.call('GET', KEYS[1])
if held then
  due, alone, told, before, most, resume, ramp = cmsgpack.unpack(held)
end
local after = math.ceil(now + ahead + (most - math.min(unit, most)) * before)
local is_longer = 0
if what == 'slow_down' then
  due = math.max(due, after)
elseif what == 'pause' and now + ahead > resume then
  is_longer, due, resume, ramp = 1, after, now + ahead, math.min({RAMP * SECOND:.0f}, ahead)
end
if what ~= 'look' then
  redis.call('SET', KEYS[1], cmsgpack.pack(due, alone, told, before, most, resume, ramp), 'PX',
    math.ceil(math.max(0, due - now) / 1000) + {LASTS})
end
return {{is_longer, now, due, resume}}
"""
"""Pauses the limit, or puts off the next permit that has not been booked, or only looks when a pause ends."""
