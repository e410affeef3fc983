"""The scripts by which redis keeps the circuits of circuit breakers and the slots of bulkheads."""

from __future__ import annotations

from opero.executors.state.redis_scripts import LASTS, SECOND

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
