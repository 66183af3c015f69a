"""The Lua scripts of the Redis store; Redis runs each as one atomic step.

Numbers that a script returns go through strings, because Redis cuts Lua's floats to integers.
"""

from __future__ import annotations

from typing import Final

# KEYS: stream. ARGV: data, wanted number or '', most events, lifetime in ms.
APPEND_EVENT: Final = """
local last = -1
local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if top[1] then last = tonumber(string.match(top[1][1], '%-(%d+)$')) - 1 end
local number = last + 1
if ARGV[2] ~= '' then number = tonumber(ARGV[2]) end
if number > last then
  redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[3], string.format('0-%.0f', number + 1), 'd', ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return string.format('%.0f', number)
"""

# KEYS: hash. ARGV: rate, capacity, cost, longest lifetime in ms. Returns allowed, tokens left.
# Time never goes back: after a fail-over to a slower clock a bucket waits instead of draining.
TAKE_FROM_BUCKET: Final = """
local rate, capacity, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local known = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = capacity
if known[1] then
  tokens = math.min(capacity, tonumber(known[1]) + math.max(0, now - tonumber(known[2])) * rate)
end
local allowed = cost <= tokens + 1e-9 * capacity
if allowed then tokens = math.min(capacity, math.max(0, tokens - cost)) end
if tokens >= capacity then
  redis.call('DEL', KEYS[1])
else
  local left = string.format('%.17g', tokens)
  redis.call('HSET', KEYS[1], 'tokens', left, 'at', string.format('%.17g', now))
  local full_in_ms = math.ceil((capacity - tokens) / rate * 1000) + 1
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(full_in_ms, tonumber(ARGV[4]))))
end
return {allowed and 1 or 0, string.format('%.17g', tokens)}
"""

# KEYS: hash, the tenant's version counter. ARGV: data, expected version or '', lifetime in ms or
# ''. Returns written, version. The counter outlives the blob, so no version comes twice.
PUT_BLOB: Final = """
local current = redis.call('HGET', KEYS[1], 'version') or '0'
if ARGV[2] ~= '' and ARGV[2] ~= current then return {0, current} end
local version = redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[1], 'version', version, 'data', ARGV[1])
if ARGV[3] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('PERSIST', KEYS[1])
end
return {1, version}
"""
