"""Lua scripts that run on the server. Each of them reads and changes the keys of a namespace atomically.

Two members of the index are not instances. `epoch` identifies the index since it was created: it is the sequence number of
the first change, so a different epoch means that the data were lost in the meantime. `sequence` is the number of the last change. It is
never lower than the clock of the server in microseconds, so numbers continue to grow after a loss of data.

Every change is published with its sequence number as a message of seven lines (`encoding.decode_change` reads it):

    sequence, kind, lease in ms, owner, service, id, record

    put     the record was created or changed
    out     the record was deregistered
    gone    the lease of the record ended, or its key was lost
    due     the lease ends earlier than announced; this message has no sequence number of its own

Scripts return an array that begins with the clock of the server in ms. Results contain only strings and integers:
Lua numbers are doubles, exact up to 2^53, which microseconds since 1970 reach in the year 2255.

If the memory is full (`maxmemory`, noeviction), Redis refuses the first command of a script that needs memory, but no command after a
write. Commands that may be refused therefore come first. A renewal begins with PEXPIRE and is never refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MAX_RECORD_BYTES = 262_144
"""Maximum size of a record as JSON: its texts (64 KiB at most) with quotes and escapes."""

MAX_MEMBER_BYTES = 2_048
"""Maximum size of a member of the index or of a set: service and id have at most 253 characters each."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest by which the server identifies it."""

    source: str

    @property
    def digest(self) -> str:
        """SHA-1 digest of the source, for EVALSHA."""
        return hashlib.sha1(self.source.encode()).hexdigest()  # noqa: S324 - defined by Redis


_PRELUDE = """
local index, root, feed = KEYS[1], ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)

local function holds(key, kind)
  return redis.call('TYPE', key).ok == kind
end

-- A value of the wrong type under one of our keys is deleted.
local mended = 0
local function claim(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    mended = mended + 1
  end
  return found == kind
end

local function whole(number)
  return string.format('%.0f', number)
end

local function next_sequence()
  local sequence = math.max(tonumber(redis.call('ZSCORE', index, 'sequence') or 0) + 1, now_us)
  redis.call('ZADD', index, whole(sequence), 'sequence')
  if not redis.call('ZSCORE', index, 'epoch') then
    redis.call('ZADD', index, whole(sequence), 'epoch')
  end
  return sequence
end

local function publish(sequence, kind, lease_ms, owner, service, id, record)
  redis.call('PUBLISH', feed, table.concat({whole(sequence), kind, lease_ms, owner, service, id, record}, '\\n'))
end

local function forget(service, id)
  local known = redis.call('ZREM', index, service .. ' ' .. id)
  local listed = root .. 'service:' .. service
  if holds(listed, 'set') then
    known = known + redis.call('SREM', listed, id)
  end
  return known > 0
end

local function split(member)
  local space = string.find(member, ' ', 1, true)
  if space then
    return string.sub(member, 1, space - 1), string.sub(member, space + 1)
  end
end

local function state()
  if not holds(index, 'zset') then
    return 0, 0
  end
  return tonumber(redis.call('ZSCORE', index, 'epoch') or 0), tonumber(redis.call('ZSCORE', index, 'sequence') or 0)
end
"""

REGISTER = Script(
    _PRELUDE
    + """
local deadline_ms, id, service, record, owner = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local lease_ms, is_restoring = tonumber(ARGV[8]), ARGV[9] == '1'
local key, listed = KEYS[2], KEYS[3]
if now_ms > deadline_ms then
  return {now_ms, 'late', 0}
end
claim(index, 'zset')
claim(listed, 'set')
local was = {}
if claim(key, 'hash') then
  was = redis.call('HMGET', key, 'record', 'service', 'owner', 'out')
end
if is_restoring and (was[4] or (was[1] and was[3] ~= owner)) then
  return {now_ms, 'taken', mended}
end
local member, ends_ms = service .. ' ' .. id, now_ms + lease_ms
local ended_ms = tonumber(redis.call('ZSCORE', index, member) or 0)
if was[1] == record and was[2] == service and ended_ms > 0 then
  redis.call('PEXPIRE', key, lease_ms)
  if was[3] ~= owner then
    redis.call('HSET', key, 'owner', owner)
  end
  redis.call('HSET', key, 'lease', lease_ms)
  redis.call('ZADD', index, whole(ends_ms), member)
  redis.call('SADD', listed, id)
  if ends_ms < ended_ms then
    publish(tonumber(redis.call('ZSCORE', index, 'sequence') or 0), 'due', lease_ms, owner, service, id, '')
  end
  return {now_ms, 'renewed', mended}
end
local sequence = next_sequence()
redis.call('HSET', key, 'record', record, 'service', service, 'owner', owner, 'sequence', whole(sequence),
  'lease', lease_ms)
redis.call('HDEL', key, 'out')
redis.call('PEXPIRE', key, lease_ms)
if was[2] and was[2] ~= service then
  forget(was[2], id)
end
redis.call('ZADD', index, whole(ends_ms), member)
redis.call('SADD', listed, id)
publish(sequence, 'put', lease_ms, owner, service, id, record)
return {now_ms, 'put', mended}
"""
)
"""Create, replace, renew or restore a record. KEYS: index, record, set of the service. ARGV: root, feed, deadline in ms, id,
service, record, owner, lease in ms, and 1 to restore a lost record without taking it from another owner. Returns clock, result,
number of repaired keys."""

DEREGISTER = Script(
    _PRELUDE
    + """
local deadline_ms, id, owner, is_own_only = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6] == '1'
local key = KEYS[2]
if now_ms > deadline_ms then
  return {now_ms, 'late', 0}
end
if not holds(key, 'hash') then
  return {now_ms, 'absent', 0}
end
local was = redis.call('HMGET', key, 'service', 'owner', 'record')
if not was[1] or not was[3] then
  return {now_ms, 'absent', 0}
end
if is_own_only and was[2] ~= owner then
  return {now_ms, 'taken', 0}
end
claim(index, 'zset')
local left_ms = redis.call('PTTL', key)
redis.call('DEL', key)
forget(was[1], id)
publish(next_sequence(), 'out', 0, owner, was[1], id, '')
if was[2] ~= owner and left_ms > 0 then
  -- Leave a mark so that the owner does not restore the record before it is registered again.
  redis.call('HSET', key, 'out', owner)
  redis.call('PEXPIRE', key, left_ms)
end
return {now_ms, 'out', mended}
"""
)
"""Remove a record. KEYS: index, record. ARGV: root, feed, deadline in ms, id, owner, and 1 to leave a record of another owner
alone. Returns clock, result, number of repaired keys."""

POLL = Script(
    _PRELUDE
    + """
local owner, skip, limit = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local kept, due, next_ms = 0, {}, 0
if holds(index, 'zset') then
  due = redis.call('ZRANGEBYSCORE', index, '-inf', whole(now_ms), 'LIMIT', skip, limit)
  for _, member in ipairs(due) do
    local service, id = split(member)
    local key = service and root .. 'instance:' .. id
    if not service then
      redis.call('ZREM', index, member)
      mended = mended + 1
    elseif not holds(key, 'hash') or redis.call('HEXISTS', key, 'record') == 0 then
      forget(service, id)
      publish(next_sequence(), 'gone', 0, '', service, id, '')
    else
      -- The key exists, so the index is outdated: memory was full, or another program changed the lease.
      local left_ms = redis.call('PTTL', key)
      if left_ms < 0 then
        left_ms = tonumber(redis.call('HGET', key, 'lease') or '') or 30000
        redis.call('PEXPIRE', key, math.max(1, left_ms))
        mended = mended + 1
      end
      local answer = redis.pcall('ZADD', index, whole(now_ms + math.max(1, left_ms)), member)
      if type(answer) == 'table' and answer.err then
        kept = kept + 1
      end
    end
  end
  local following = redis.call('ZRANGEBYSCORE', index, '(' .. whole(now_ms), '(100000000000000', 'WITHSCORES',
    'LIMIT', 0, 1)
  if following[2] then
    next_ms = math.floor(tonumber(following[2]))
  end
end
local epoch, sequence = state()
local answer = {now_ms, epoch, sequence, #due, kept, next_ms, mended}
for position = 6, #ARGV, 2 do
  local service, id = ARGV[position], ARGV[position + 1]
  local key, found = root .. 'instance:' .. id, 'missing'
  if holds(key, 'hash') then
    local was = redis.call('HMGET', key, 'owner', 'out', 'service')
    if was[2] or (was[1] and was[1] ~= owner) then
      found = 'taken'
    elseif was[1] and was[3] == service and epoch > 0 and redis.call('ZSCORE', index, service .. ' ' .. id)
        and holds(root .. 'service:' .. service, 'set')
        and redis.call('SISMEMBER', root .. 'service:' .. service, id) == 1 then
      found = 'present'
    end
  end
  answer[#answer + 1] = found
end
return answer
"""
)
"""Remove expired records and return the state of own records. KEYS: index. ARGV: root, feed, owner, number of due records to
skip, maximum number to process, then service and id of each own record. Returns clock, epoch, sequence, number of due records,
number of those that could not be updated, time of the next end of a lease (0: none), number of repaired keys, then a state for
each own record: present, missing, taken (by another owner, or deregistered)."""

CHECK = Script(
    _PRELUDE
    + """
local answer = {now_ms}
for position = 3, #ARGV, 2 do
  local service, id = ARGV[position], ARGV[position + 1]
  local key, found = root .. 'instance:' .. id, 'present'
  if not holds(key, 'hash') or redis.call('HEXISTS', key, 'record') == 0 then
    found = 'missing'
    if holds(index, 'zset') and forget(service, id) then
      publish(next_sequence(), 'gone', 0, '', service, id, '')
      found = 'gone'
    end
  end
  answer[#answer + 1] = found
end
return answer
"""
)
"""Remove records whose keys are lost. KEYS: index. ARGV: root, feed, then service and id of each record. Returns clock, then a
state for each record: present, gone (removed and published), missing (removed earlier)."""

LIST = Script(
    _PRELUDE
    + f"""
local max_record_bytes, max_member_bytes = {MAX_RECORD_BYTES}, {MAX_MEMBER_BYTES}"""
    + """
local service, cursor, count = ARGV[3], ARGV[4], ARGV[5]
local members, garbage, is_all = {}, 0, service == ''
local source = is_all and index or root .. 'service:' .. service
local found = {'0', {}}
if holds(source, is_all and 'zset' or 'set') then
  found = redis.call(is_all and 'ZSCAN' or 'SSCAN', source, cursor, 'COUNT', count)
end
local epoch, sequence = state()
local answer = {now_ms, epoch, sequence, found[1], 0}
for position = 1, #found[2], is_all and 2 or 1 do
  local member = found[2][position]
  if #member > max_member_bytes then
    garbage = garbage + 1
  elseif not is_all or (member ~= 'epoch' and member ~= 'sequence') then
    local of, id = service, member
    if is_all then
      of, id = split(member)
    end
    local key = id and root .. 'instance:' .. id
    local kind = key and redis.call('TYPE', key).ok
    if kind == 'hash' and redis.call('HSTRLEN', key, 'record') <= max_record_bytes then
      local was = redis.call('HMGET', key, 'record', 'service', 'sequence')
      if was[1] and was[2] == of and was[3] then
        for _, value in ipairs({id, was[3], was[1]}) do
          answer[#answer + 1] = value
        end
      elseif (not was[2] or was[2] == of) and redis.call('HEXISTS', key, 'out') == 0 then
        garbage = garbage + 1
      end
    elseif kind ~= 'none' then
      garbage = garbage + 1
    end
  end
end
answer[5] = garbage
return answer
"""
)
"""Read one page of records. KEYS: index. ARGV: root, feed, service (empty: all), cursor, number of members to scan. Returns clock,
epoch, sequence, next cursor (0: last page), number of invalid entries, then id, sequence and record of each. A record that
exists during the whole iteration is on at least one page."""

PROBE = Script(
    _PRELUDE
    + """
local key = KEYS[2]
if ARGV[3] == 'set' then
  redis.call('HSET', key, 'out', '1')
  redis.call('DEL', key)
  redis.call('HSET', key, 'out', '1')
  redis.call('PEXPIRE', key, 1)
end
return {now_ms, redis.call('PTTL', key)}
"""
)
"""Create a key, delete it and let it expire, to test whether keyspace notifications are sent. KEYS: index, key. ARGV: root,
feed, and `set` in the first call; the second call accesses the key so that it expires."""
