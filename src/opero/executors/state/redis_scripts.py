"""The scripts by which redis keeps the budgets of rate limits."""

from __future__ import annotations

SECOND = 1_000_000
"""Microseconds, in which the scripts compute: whole numbers, by the clock of the server."""
LASTS = 60_000
"""Milliseconds for which the terms outlast the budget."""
HANDOVER = 300_000
"""Microseconds after the server is back before which no permit falls due: by then, each process has noticed, and uses
none by itself any more."""
# The budget is one value: when the next permit falls due; until when processes may go on by themselves; the terms in
# force, and since when they hold. A budget that is missing is full: its value lasts until it is.
BOOK = f"""
local since, interval, burst, period = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local cost, patience, ahead = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_owed, lost, debt, used, last, own = false, -1, 0, 0, 0, 0
if ARGV[9] then
  is_owed, lost, debt = ARGV[9] == '1', tonumber(ARGV[10]), tonumber(ARGV[11])
  used, last, own = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
end
local time = redis.call('TIME')
local now = time[1] * {SECOND} + time[2]
local due, alone, told, before, most = 0, 0, 0, 0, 0
local held = redis.call('GET', KEYS[1])
if held then
  due, alone, told, before, most = cmsgpack.unpack(held)
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
  after = math.ceil(due + cost * interval)
end
redis.call('SET', KEYS[1], cmsgpack.pack(after, alone, told, interval, burst), 'PX',
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
if others or part then
  return {{wait, due, after, now, others, part}}
end
return {{wait, due, after, now}}
"""
REFUND = """
local held = redis.call('GET', KEYS[1])
if held then
  local due, alone, told, interval, burst = cmsgpack.unpack(held)
  if due == tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], cmsgpack.pack(tonumber(ARGV[2]), alone, told, interval, burst), 'KEEPTTL')
    return 1
  end
end
return 0
"""

# The circuit of a circuit breaker is one text, after a number: when it was written. A process that knows the latest may
# replace it; any other gets it.
EXCHANGE = f"""
local time = redis.call('TIME')
local now = time[1] * {SECOND} + time[2]
local held = redis.call('GET', KEYS[1])
local number = 0
if held then
  number = tonumber(string.match(held, '^(%d+):')) or 0
end
if number ~= 0 and number ~= tonumber(ARGV[1]) then
  return {{now, number, string.sub(held, string.find(held, ':') + 1)}}
end
if ARGV[2] ~= '' then
  now = math.max(now, number + 1)
  redis.call('SET', KEYS[1], string.format('%.0f:', now) .. ARGV[2], 'PX', ARGV[3])
elseif number == 0 then
  return {{now, 0, ''}}
end
return {{now}}
"""

# The slots of a bulkhead: a hash has how many each process has, all together, the limit in force and since when it
# holds; one sorted set until when each process lives if it is not heard of, another since when the first call of each
# process has waited.
SLOTS = f"""
local owner, lease, told, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local exact, how, first, second = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * {SECOND} + time[2]
local held = redis.call('HMGET', KEYS[1], '#told', '#limit', '#born')
local born = tonumber(held[3]) or now
if held[1] and tonumber(held[1]) > told then
  limit = tonumber(held[2])
elseif tonumber(held[1]) ~= told then
  redis.call('HSET', KEYS[1], '#told', ARGV[3], '#limit', limit, '#born', string.format('%.0f', born))
end
for _, each in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('HINCRBY', KEYS[1], '#total', -(tonumber(redis.call('HGET', KEYS[1], each)) or 0))
  redis.call('HDEL', KEYS[1], each)
  redis.call('ZREM', KEYS[2], each)
  redis.call('ZREM', KEYS[3], each)
end
local count = tonumber(redis.call('HGET', KEYS[1], owner)) or 0
local total = tonumber(redis.call('HGET', KEYS[1], '#total')) or 0
local before, got = count, 0
if exact >= 0 then
  count = exact
end
total = total + count - before
if how == {2} then
  got = 1
elseif how == {1} then
  local ahead
  if first >= 0 then
    ahead = redis.call('ZCOUNT', KEYS[3], '-inf', '(' .. string.format('%.0f', now - first))
    local own = redis.call('ZSCORE', KEYS[3], owner)
    if own and tonumber(own) < now - first then
      ahead = ahead - 1
    end
  else
    ahead = redis.call('ZCARD', KEYS[3])
  end
  if ahead < limit - total then
    got = 1
  end
elseif how == {-1} and count > 0 then
  count, total = count - 1, total - 1
end
count, total = count + got, total + got
if count ~= before then
  redis.call('HSET', KEYS[1], owner, count, '#total', total)
end
local waits = got == 1 and second or first
if waits >= 0 then
  redis.call('ZADD', KEYS[3], now - waits, owner)
else
  redis.call('ZREM', KEYS[3], owner)
end
redis.call('ZADD', KEYS[2], now + lease, owner)
local rank = -1
if how == {0} then
  rank = 0
  for _, each in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if each < owner then
      rank = rank + 1
    end
  end
end
for _, each in ipairs(KEYS) do
  redis.call('PEXPIRE', each, {LASTS})
end
return {{got, limit, total, redis.call('ZCARD', KEYS[2]), rank, born, now}}
"""
