"""What the server does for us: Lua scripts, each of which reads and changes the keys of a namespace as one step.

Two members of the index are no instances. `epoch` marks the life of the index: it is drawn when the index is made (the
number of its first change), so whoever knows another epoch knows that the data were lost meanwhile. `sequence` is the number of the last change; it is
never below the server's clock in microseconds, so numbers go on growing when data were lost.

Every change is published with its number, as lines (`feed.py` reads them):

    sequence, kind, lease in ms, owner, service, id, record

    put     the record was created or changed
    out     it was deregistered
    gone    its lease ended, or its key was lost
    due     it ends earlier than was said before; bears no number of its own

Scripts answer with an array that begins with the server's clock in ms. Answers have strings and whole numbers only:
Lua numbers are doubles, exact up to 2^53, which microseconds since 1970 reach in the year 2255.

With memory full (`maxmemory`, noeviction) Redis refuses a script's first command that needs memory, and none after a
write. So what may be refused comes first, and renewing, which begins with PEXPIRE, is never refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MAX_RECORD_BYTES = 262_144
"""Longest record read or written, as JSON: a record's texts (64 KiB at most) with their quotes and escapes."""

MAX_MEMBER_BYTES = 2_048
"""Longest member of an index or id in a set that is looked at: service and id have at most 253 characters each."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name under which a server knows it once it has seen it."""

    source: str

    @property
    def digest(self) -> str:
        return hashlib.sha1(self.source.encode()).hexdigest()  # noqa: S324 - the name that Redis gives it


_PRELUDE = """
local index, root, feed = KEYS[1], ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)

local function holds(key, kind)
  return redis.call('TYPE', key).ok == kind
end

-- What a stranger left under one of our keys makes way for what belongs there.
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
"""KEYS: index, record, set of the service. ARGV: root, feed, deadline in ms, id, service, record, owner, lease in ms, and
1 to restore a record that was lost without taking it from another owner. Answers clock, what happened, keys mended."""

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
  -- Its owner is to see that this was meant, and not to restore it before it is registered again.
  redis.call('HSET', key, 'out', owner)
  redis.call('PEXPIRE', key, left_ms)
end
return {now_ms, 'out', mended}
"""
)
"""KEYS: index, record. ARGV: root, feed, deadline in ms, id, owner, and 1 to leave what another owner has taken over.
Answers clock, what happened, keys mended."""

TEND = Script(
    _PRELUDE
    + """
local owner, skip, most = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local kept, due, next_ms = 0, {}, 0
if holds(index, 'zset') then
  due = redis.call('ZRANGEBYSCORE', index, '-inf', whole(now_ms), 'LIMIT', skip, most)
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
      -- The key is what counts. It stands, so the index is behind: memory was full, or a stranger changed a lease.
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
for place = 6, #ARGV, 2 do
  local service, id = ARGV[place], ARGV[place + 1]
  local key, found = root .. 'instance:' .. id, 'missing'
  if holds(key, 'hash') then
    local was = redis.call('HMGET', key, 'owner', 'out', 'service')
    if was[2] or (was[1] and was[1] ~= owner) then
      found = 'taken'
    elseif was[1] and was[3] == service and epoch > 0 and redis.call('ZSCORE', index, service .. ' ' .. id)
        and holds(root .. 'service:' .. service, 'set')
        and redis.call('SISMEMBER', root .. 'service:' .. service, id) == 1 then
      found = 'stands'
    end
  end
  answer[#answer + 1] = found
end
return answer
"""
)
"""Gives up what is due, and tells the owner of records how they are. KEYS: index. ARGV: root, feed, owner, how many of
the due to skip, how many to look at, then service and id of each record. Answers clock, epoch, sequence, number of the
due, how many of them stand and stay due, clock of the next to end (0: none), keys mended, then a word for each record:
stands, missing, taken (by another owner, or out)."""

LOOK = Script(
    _PRELUDE
    + """
local answer = {now_ms}
for place = 3, #ARGV, 2 do
  local service, id = ARGV[place], ARGV[place + 1]
  local key, found = root .. 'instance:' .. id, 'stands'
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
"""Gives up records whose keys are lost. KEYS: index. ARGV: root, feed, then service and id of each record. Answers
clock, then a word for each: stands, gone (and published), missing (it was given up earlier)."""

LIST = Script(
    _PRELUDE
    + f"""
local longest_record, longest_member = {MAX_RECORD_BYTES}, {MAX_MEMBER_BYTES}"""
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
for place = 1, #found[2], is_all and 2 or 1 do
  local member = found[2][place]
  if #member > longest_member then
    garbage = garbage + 1
  elseif not is_all or (member ~= 'epoch' and member ~= 'sequence') then
    local of, id = service, member
    if is_all then
      of, id = split(member)
    end
    local key = id and root .. 'instance:' .. id
    local kind = key and redis.call('TYPE', key).ok
    if kind == 'hash' and redis.call('HSTRLEN', key, 'record') <= longest_record then
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
"""One page of the records. KEYS: index. ARGV: root, feed, service (empty: all), cursor, how many to look at. Answers
clock, epoch, sequence, next cursor (0: this was the last), number of things that are no records, then id, sequence and
record of each. A record that stands throughout is on one page at least."""

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
"""Makes a key, deletes it, and lets it expire, to see whether notifications tell. KEYS: index, key. ARGV: root, feed, and
`set` the first time; the second time the key is looked at, so that it expires."""
