"""The scripts by which redis keeps the budgets of rate limits."""

from __future__ import annotations

from opero.executors.state.pace import FIRST, RAMP
from opero.policies.rate_limit import UNLIMITED

SECOND = 1_000_000
"""Microseconds, in which the scripts compute: whole numbers, by the clock of the server."""
LASTS = 60_000
"""Milliseconds for which the terms outlast the budget."""
SAME = 1
"""Microseconds by which marks may differ and count as one."""
MOST_MARKS = 32
ARGUMENTS = 18
"""How many arguments a script takes for each of several limits."""
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
TIME = f"""
local time = redis.call('TIME')
local now = time[1] * {SECOND} + time[2]
"""
READ = f"""
local since, interval = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
local burst, period = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
local cost, patience, ahead = tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7])
local is_owed, lost, debt, used, last, own = false, -1, 0, 0, 0, 0
if (ARGV[a + 9] or '') ~= '' then
  is_owed, lost, debt = ARGV[a + 9] == '1', tonumber(ARGV[a + 10]), tonumber(ARGV[a + 11])
  used, last, own = tonumber(ARGV[a + 12]), tonumber(ARGV[a + 13]), tonumber(ARGV[a + 14])
end
local due, alone, told, before, most, resume, ramp, number, marks = 0, 0, 0, 0, 0, 0, 0, 0, {{}}
local held = redis.call('GET', KEYS[k])
if held then
  due, alone, told, before, most, resume, ramp, number, marks = cmsgpack.unpack(held)
end
local others, stored = false, math.ceil(due)
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
"""
REPORT = """
local part = false
if used > 0 then
  local epoch = math.floor(now / period)
  local total = redis.call('HINCRBY', KEYS[k + 1], epoch, used)
  if total == used then
    redis.call('HDEL', KEYS[k + 1], epoch - 2, 'claimed' .. epoch - 2)
  end
  redis.call('PEXPIRE', KEYS[k + 1], math.ceil(3 * period / 1000))
  part = {epoch, 0, 0}
  if last == epoch - 1 then
    local claimed = redis.call('HINCRBY', KEYS[k + 1], 'claimed' .. epoch, own)
    part = {epoch, claimed - own, tonumber(redis.call('HGET', KEYS[k + 1], last)) or 0}
  end
end
"""
BOOK = f"""{STEP}
local k, a = 1, 0
{TIME}{READ}
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
{REPORT}if others or part or resume > 0 then
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
# Several budgets at once: each has a value as above, followed by the number of its last reservation or correction and
# by its marks (see `opero.executors.state.budgets`). Numbers are moments, so those of a lost budget never return.
ACCOUNT = f"""
local function account(due, number, marks, interval, resume, ramp)
  return {{due = due, number = number, marks = marks, interval = interval, resume = resume, ramp = ramp}}
end
local function pruned(own, marks)
  local kept, latest, place = {{}}, -math.huge, 0
  for index = #marks, 1, -1 do
    local mark = marks[index]
    if mark[2] <= latest then
    elseif mark[2] <= latest + {SAME} then
      latest = mark[2]
      kept[place][2] = latest
    else
      kept[#kept + 1] = mark
      if mark[3] <= now then
        latest, place = mark[2], #kept
      end
    end
  end
  own.due, own.marks = -math.huge, {{}}
  for index = #kept, 1, -1 do
    own.marks[#own.marks + 1] = kept[index]
    own.due = math.max(own.due, kept[index][2])
  end
  if #kept > {MOST_MARKS} then
    local closest, least = 1, math.huge
    for index = 1, #own.marks - 1 do
      local gap = math.abs(own.marks[index][2] - own.marks[index + 1][2])
      if gap < least then
        closest, least = index, gap
      end
    end
    local one, other = own.marks[closest], own.marks[closest + 1]
    own.marks[closest] = {{other[1], math.max(one[2], other[2]), 0}}
    table.remove(own.marks, closest + 1)
  end
end
local function moved(marks, number, step)
  local found = {{}}
  for _, mark in ipairs(marks) do
    found[#found + 1] = {{mark[1], mark[1] <= number and mark[2] + step or mark[2], mark[3]}}
  end
  return found
end
local function take(own, at, cost)
  local step = cost * own.interval
  own.number = math.max(own.number + 1, now)
  local marks = moved(own.marks, own.number, step)
  marks[#marks + 1] = {{own.number, at + step, at}}
  pruned(own, marks)
end
local function correct(own, number, change)
  if change > 0 then
    take(own, now, change)
  else
    own.number = math.max(own.number + 1, now)
    pruned(own, moved(own.marks, number, change * own.interval))
  end
end
local function cancel(own, number, cost, at, before)
  local marks, kept = moved(own.marks, number, -cost * own.interval), {{}}
  for _, mark in ipairs(marks) do
    if mark[1] ~= number or mark[3] == 0 then
      kept[#kept + 1] = mark
    elseif at <= now then
      kept[#kept + 1] = {{number, mark[2] + math.min(0, before - at), at}}
    end
  end
  own.number = math.max(own.number + 1, now)
  if #kept == 0 then
    kept[1] = {{own.number, now, now}}
  end
  pruned(own, kept)
end
local function store(key, own, alone, told, burst)
  redis.call('SET', key, cmsgpack.pack(own.due, alone, told, own.interval, burst, own.resume, own.ramp, own.number,
    own.marks), 'PX', math.max(0, math.ceil((own.due - now) / 1000)) + {LASTS})
end
"""
LOOK = f"""
local function look(k, a)
{READ}
  if not marks or #marks == 0 or due ~= stored then
    number = math.max((number or 0) + 1, now)
    marks = {{{{number, due, now}}}}
  end
  local budget, at, again = account(due, number, marks, interval, resume, ramp), 0, tonumber(ARGV[a + 15])
  if again > 0 then
    at = tonumber(ARGV[a + 17])
    cancel(budget, again, tonumber(ARGV[a + 16]), at, tonumber(ARGV[a + 18]))
  end
  local wait = 0
  if cost > 0 then
    wait = math.max(0, alone - now, (cost >= burst and budget.due or budget.due - (burst - cost) * interval) - now)
  end
  return {{wait = math.ceil(wait), at = at, report = function(booked)
    local reservation, without = 0, budget.due
    if booked and cost > 0 then
      take(budget, now + booked, cost)
      reservation = budget.number
    end
    store(KEYS[k], budget, alone, told, burst)
{REPORT}
    return {{reservation, math.ceil(without), math.ceil(budget.due), others, part}}
  end}}
end
"""
BOOK_ALL = f"""
{TIME}{ACCOUNT}{LOOK}
local limits, wait, slowest, at, patience = {{}}, 0, 1, 0, tonumber(ARGV[6])
for index = 1, #KEYS / 2 do
  local limit = look(2 * index - 1, {ARGUMENTS} * (index - 1))
  limits[index] = limit
  at = math.max(at, limit.at)
  if limit.wait > wait then
    wait, slowest = limit.wait, index
  end
end
local reply = {{wait, slowest - 1, now}}
if at > 0 and now + wait >= at - {SAME} then
  return reply
end
for _, limit in ipairs(limits) do
  reply[#reply + 1] = limit.report(wait <= patience and wait)
end
return reply
"""
SETTLE_ALL = f"""
{TIME}{ACCOUNT}
local reply = {{now}}
for index = 1, #KEYS do
  local a = 7 * (index - 1)
  local reservation, change = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local cost, at, before = tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7])
  local held = (change ~= 0 or cost > 0) and redis.call('GET', KEYS[index])
  local due, alone, told, resume, ramp, number, marks = 0, 0, 0, 0, 0, 0, {{}}
  local interval, burst = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  if held then
    due, alone, told, interval, burst, resume, ramp, number, marks = cmsgpack.unpack(held)
  end
  if held or change > 0 then
    if due < now or not marks then
      number = math.max((number or 0) + 1, now)
      due = math.max(due, now)
      marks = {{{{number, due, now}}}}
    end
    local budget = account(due, number, marks, interval, resume, ramp)
    if cost > 0 then
      cancel(budget, reservation, cost, at, before)
    else
      correct(budget, reservation, change)
    end
    store(KEYS[index], budget, alone, told, burst)
    due = budget.due
  end
  reply[#reply + 1] = math.ceil(due)
end
return reply
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
