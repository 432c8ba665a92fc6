"""What changes a job in Redis: scripts in Lua, each of them atomic."""

from __future__ import annotations

# KEYS: job, queued, active, mine, keys. ARGV: prefix of jobs, id, Idempotency-Key, most jobs, most sequences, own
# sequences, fields...
SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 1 then return {'new', ARGV[2]} end
if ARGV[3] ~= '' then
  local there = redis.call('HGET', KEYS[5], ARGV[3])
  if there then return {'again', there} end
end
local active = redis.call('SMEMBERS', KEYS[3])
local sequences = tonumber(ARGV[6])
for _, id in ipairs(active) do
  sequences = sequences + (redis.call('HGET', ARGV[1] .. id, 'num_sequences') or 0)
end
if #active >= tonumber(ARGV[4]) then return {'jobs', tostring(#active)} end
if #active > 0 and sequences > tonumber(ARGV[5]) then return {'sequences', tostring(sequences)} end
local clock = redis.call('TIME')
local now = clock[1] .. '.' .. string.format('%06d', clock[2])
redis.call('HSET', KEYS[1], 'state', 'queued', 'submitted_at', now, 'key', ARGV[3])
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], now, ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[5], ARGV[3], ARGV[2]) end
return {'new', ARGV[2]}
"""

# KEYS: queued and leased of each model. ARGV: prefix of jobs, token, lease in seconds. Lapsed leases go first
TAKE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local id, from, leased, oldest
for i = 1, #KEYS, 2 do
  local lapsed = redis.call('ZRANGEBYSCORE', KEYS[i + 1], '-inf', now, 'LIMIT', 0, 1)
  if lapsed[1] then
    id, from, leased = lapsed[1], KEYS[i + 1], KEYS[i + 1]
    break
  end
  local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if first[1] and (not oldest or tonumber(first[2]) < oldest) then
    id, from, leased, oldest = first[1], KEYS[i], KEYS[i + 1], tonumber(first[2])
  end
end
if not id then return false end
local job = ARGV[1] .. id
redis.call('ZREM', from, id)
if redis.call('HEXISTS', job, 'owner') == 0 then return false end -- nothing but its name is left
redis.call('ZADD', leased, now + ARGV[3], id)
redis.call('HSET', job, 'state', 'running', 'token', ARGV[2], 'run_at', tostring(now))
redis.call('HSET', job, 'run_residues', redis.call('HGET', job, 'residues') or 0)
redis.call('HSET', job, 'live_sequences', 0, 'live_residues', 0)
redis.call('HSETNX', job, 'started_at', tostring(now))
redis.call('HINCRBY', job, 'tries', 1)
return id
"""

# What a worker writes begins so; ARGV[1] is its token
HELD = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
"""

# KEYS: job. ARGV: token. Who cannot understand a job has not tried it; its lease is for how long others come first
LEAVE = (
    HELD
    + """
redis.call('HINCRBY', KEYS[1], 'tries', -1)
return 1
"""
)

# KEYS: job, leased. ARGV: token, id, lease in seconds, fields...
RENEW = (
    HELD
    + """
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[2], clock[1] + clock[2] / 1e6 + ARGV[3], ARGV[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

# KEYS: job, leased, parts, errors. ARGV: token, id, lease in seconds, part, place, place behind, errors as JSON,
# fields... A job that is at neither place is not as the worker knows it: Redis has lost something
ADVANCE = (
    HELD
    + """
local place = redis.call('HGET', KEYS[1], 'next')
if place ~= ARGV[5] and place ~= ARGV[6] then return 0 end
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[2], clock[1] + clock[2] / 1e6 + ARGV[3], ARGV[2])
if place == ARGV[5] then
  redis.call('RPUSH', KEYS[3], ARGV[4])
  for index, reason in pairs(cjson.decode(ARGV[7])) do redis.call('HSET', KEYS[4], index, reason) end
  for i = 8, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', KEYS[1], 'tries', 0, 'reason', '')
end
return 1
"""
)

# KEYS: job, parts, errors. ARGV: token, fields...
RESTART = (
    HELD
    + """
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'run_residues', 0)
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

# KEYS: job, leased, active, ended, parts. ARGV: token, id, seconds until it is forgotten, fields...
END = (
    HELD
    + """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
redis.call('HSET', KEYS[1], 'ended_at', tostring(now), 'live_sequences', 0, 'live_residues', 0, 'reason', '')
redis.call('HDEL', KEYS[1], 'token')
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('SREM', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], now + ARGV[3], ARGV[2])
redis.call('DEL', KEYS[5])
return 1
"""
)

# KEYS: job, leased, queued. ARGV: token, id
HAND_BACK = (
    HELD
    + """
redis.call('HDEL', KEYS[1], 'token')
local tries = math.max(0, redis.call('HGET', KEYS[1], 'tries') - 1)
redis.call('HSET', KEYS[1], 'state', 'queued', 'reason', '', 'tries', tries)
redis.call('HSET', KEYS[1], 'live_sequences', 0, 'live_residues', 0)
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[3], redis.call('HGET', KEYS[1], 'submitted_at'), ARGV[2])
return 1
"""
)

# KEYS: job, queued, leased, active, ended, parts. ARGV: id, seconds until it is forgotten
CANCEL = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
redis.call('HSET', KEYS[1], 'state', 'cancelled', 'ended_at', tostring(now), 'reason', '')
redis.call('HSET', KEYS[1], 'live_sequences', 0, 'live_residues', 0)
redis.call('HDEL', KEYS[1], 'token')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[5], now + ARGV[2], ARGV[1])
redis.call('DEL', KEYS[6])
return 1
"""

# KEYS: job, errors, parts, ended. ARGV: id, seconds for which it is remembered, prefixes of mine and keys. What is
# not due any more was done by another
FORGET = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local due = redis.call('ZSCORE', KEYS[4], ARGV[1])
if not due or tonumber(due) > now then return 0 end
local owner, key, expired = unpack(redis.call('HMGET', KEYS[1], 'owner', 'key', 'expired'))
if owner and not expired then
  redis.call('HSET', KEYS[1], 'expired', '1')
  redis.call('ZADD', KEYS[4], now + ARGV[2], ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
if owner then
  redis.call('ZREM', ARGV[3] .. owner, ARGV[1])
  redis.call('HDEL', ARGV[4] .. owner, key)
end
return 1
"""
