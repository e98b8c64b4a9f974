#!lua name=connect_chat

-- The inbox of a user has these keys, which share a hash slot:
--   {u:<user>}:inbox    stream; the id of an entry is the position of the message
--                         t  time at which it was appended to the log, s since the epoch
--                         c  number of bytes ever appended to this inbox, including this entry
--                         m  the JSON object that the recipient gets
--                       An entry may be a gap instead, where the quota was used up:
--                         t, c  as above, but t is Redis's where the log has lost the messages
--                         g  the messages in (g, id of this entry] went to history only, or are lost
--   {u:<user>}:devices  hash
--                         top      the highest position ever applied
--                         floor    the highest position removed
--                         bytes    number of bytes ever appended
--                         removed  number of those bytes that are gone: a lower bound, made exact when the quota seems
--                                  used up
--                         gap      the id of the newest entry, if that is a gap
--                         crowded  set while the key :extra exists
--                         touched  time of the message whose append last set the expiry of the keys, s since the epoch
--                         d:<device>  "<cursor> <last seen, s since the epoch by Redis> <connection number>"
--   {u:<user>}:extra    hash: n:<sender> and b:<sender> are the messages and bytes of a sender accepted above the quota
--   {u:<user>}:traced   stream of the newest sampled messages that were not pushed; the id of an entry is the position
--                         p  a W3C traceparent
--   {u:<user>}:seen:<n> set of the digests of (sender, message id) in the n-th retry window
--
-- Positions are compared as texts, because Lua's numbers are doubles, which are exact up to 2^53 only.
--
-- No times of two machines are compared: those of messages are the log's, and compared with the log's; those of devices
-- and leases are by the clock of Redis, which also lets keys expire.

local ORIGIN = '0-0'
local CHUNK = 250
local SHARES = 100
local TOUCHES = 32
local STALE_WINDOWS = 8
local MOST_EXPIRED = 2000
local MOST_EXPIRED_BYTES = 512 * 1024
local EXPIRED_CHUNK = 100
local EXPIRED_CHUNKS = 20

local function less(a, b)
  local a_dash, b_dash = string.find(a, '-', 1, true), string.find(b, '-', 1, true)
  if a_dash ~= b_dash then
    return a_dash < b_dash
  end
  -- With the dashes aligned, texts of equal length compare digit by digit.
  if #a == #b or string.sub(a, 1, a_dash) ~= string.sub(b, 1, b_dash) then
    return a < b
  end
  return #a < #b
end

local function digits(number)
  return string.format('%.0f', number)
end

-- Return the time by this server in s and in ms, since the epoch.
local function clock()
  local now = redis.call('TIME')
  return tonumber(now[1]), 1000 * tonumber(now[1]) + math.floor(tonumber(now[2]) / 1000)
end

-- Return the id that comes next after a position.
local function following(position)
  local entry, index = string.match(position, '^(%d+)-(%d+)$')
  return entry .. '-' .. digits(tonumber(index) + 1)
end

local function device_of(value)
  local cursor, seen, number = string.match(value, '^(%d+-%d+) (%d+) (%d+)$')
  return cursor, tonumber(seen), tonumber(number)
end

-- Set the expiry of the keys. The devices outlive the messages, so that an expired inbox differs from a new one.
local function touch(keys, ttl_ms)
  redis.call('PEXPIRE', keys[1], ttl_ms)
  redis.call('PEXPIRE', keys[2], 2 * ttl_ms)
end

-- Return how many of the bytes ever appended are no longer in the inbox.
local function removed_bytes(inbox, bytes)
  local first = redis.call('XRANGE', inbox, '-', '+', 'COUNT', 1)[1]
  if not first then
    return bytes
  end
  local value = first[2]
  return tonumber(value[4]) - (value[5] == 'm' and #value[6] or 0)
end

-- The fence of each partition of the log, without which nothing is appended: {token, evicted, sentinel, value}. It is in
-- the memory of this server process only, not in its data: a server that was restarted or promoted may have lost its
-- newest writes, and has no fence. The data has the key `sentinel` with `value`, "<token> <evicted>": a server that was
-- flushed has the fence, and no sentinel. `evicted` is the number of keys that the server had evicted by then.
local fences = {}

-- Return the value of a sentinel, false where it is gone, nil where another server has its slot by now.
local function sentinel_of(fence)
  local value = redis.pcall('GET', fence.sentinel)
  if type(value) == 'table' then
    return nil
  end
  return value
end

local function evicted_keys()
  return tonumber(string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)'))
end

local function is_current(partition, token)
  local fence = fences[partition]
  return fence ~= nil and fence.token == token and sentinel_of(fence) == fence.value
end

local function stale_token(partition)
  return redis.error_reply('STALETOKEN ' .. (fences[partition] and fences[partition].token or ''))
end

-- Set the fencing token of a partition.
-- keys: the watermark of the partition on this server, its sentinel; args: partition, the token expected, the new token,
-- TTL in ms
-- Returns whether the token was the expected one and nothing was lost since it was set, and the watermark: the offset
-- below which this server has everything, 0 after it was flushed or evicted keys.
local function fence(keys, args)
  local former, evicted, watermark = fences[args[1]], evicted_keys(), redis.call('GET', keys[1]) or '0'
  local kept, lost = false, false
  if former then
    local value = sentinel_of(former)
    lost = value == false or former.evicted ~= evicted
    kept = former.token == args[2] and not lost and (value == former.value or value == nil)
  elseif evicted > 0 then
    -- The count begins again with each process, and an older version has left no sentinel.
    local before = string.match(redis.call('GET', keys[2]) or '', ' (%d+)$')
    lost = tonumber(before) ~= evicted
  end
  if lost then
    -- Kept until the partition is applied again, also if this answer gets lost.
    watermark = '0'
    redis.call('SET', keys[1], watermark, 'PX', args[4])
  end
  local value = args[3] .. ' ' .. digits(evicted)
  fences[args[1]] = {token = args[3], evicted = evicted, sentinel = keys[2], value = value}
  redis.call('SET', keys[2], value, 'PX', args[4])
  return {kept and 1 or 0, tonumber(watermark)}
end

local function sender_of(json)
  -- The first quotes of a message are around what holds none.
  return string.match(json, ',"from":"([^"]*)"') or ''
end

-- Return the highest position in a stream whose devices were evicted and not it, and note it as the top.
local function recovered_top(inbox, devices)
  local last = redis.call('XREVRANGE', inbox, '+', '-', 'COUNT', 1)[1]
  if not last then
    redis.call('DEL', inbox)  -- an empty stream refuses what is below its last entry
    return ORIGIN
  end
  redis.call('HSET', devices, 'top', last[1])
  return last[1]
end

-- Raise the floor to the top: what was in the stream is gone without acknowledgement, and is missed. Returns the floor.
local function raised_floor(devices, floor, top)
  if floor and not less(floor, top) then
    return floor
  end
  redis.call('HSET', devices, 'floor', top)
  return top
end

-- Return whether the oldest entry of an inbox is of before `oldest`.
local function has_expired(inbox, oldest)
  local first = redis.call('XRANGE', inbox, '-', '+', 'COUNT', 1)[1]
  return first ~= nil and tonumber(first[2][2]) < oldest
end

-- Remove the entries of before `oldest` that an inbox begins with, at most a chunk of them.
-- Returns their number, and the id of the last one.
local function remove_expired(inbox, oldest)
  local count, last = 0, ORIGIN
  for _, entry in ipairs(redis.call('XRANGE', inbox, '-', '+', 'COUNT', EXPIRED_CHUNK)) do
    if tonumber(entry[2][2]) >= oldest then
      break
    end
    count, last = count + 1, entry[1]
  end
  if count > 0 then
    redis.call('XTRIM', inbox, 'MINID', '=', following(last))
  end
  return count, last
end

-- Delete the digests of an inbox that was evicted and not they: what is applied again would be taken for retries.
-- seen: their key in one window
local function forget_digests(seen, window_ms)
  local prefix, window = string.match(seen, '^(.*:)(%d+)$')
  local stale = {seen, prefix .. digits(tonumber(window) - 1)}
  local current = math.floor(1000 * clock() / window_ms)
  for n = current - STALE_WINDOWS, current + STALE_WINDOWS do
    stale[#stale + 1] = prefix .. digits(n)
  end
  redis.call('DEL', unpack(stale))
end

-- Append the messages of a batch to an inbox.
-- keys: inbox, devices, seen in this window, seen in the window before, extra, seen in the window after
-- args: partition, fencing token, TTL in ms, quota in messages, quota in bytes, the largest number of digests kept of a
--       window, the window in ms, the time of the last message (s), the position that must have been applied before ("0-0" for none; an earlier
--       call of the same pipeline may have failed), then for each message: position, time in s, digest, JSON
-- Returns the top before, and a text with one character for each message: "1" added, "0" not new, "2" above the quota.
local function append(keys, args)
  if not is_current(args[1], args[2]) then
    return stale_token(args[1])
  end
  local inbox, devices = keys[1], keys[2]
  local head = redis.call('HMGET', devices, 'top', 'bytes', 'gap', 'removed', 'floor', 'crowded', 'touched')
  local top, bytes, gap, floor = head[1] or ORIGIN, tonumber(head[2] or '0'), head[3], head[5]
  if args[9] ~= ORIGIN and less(top, args[9]) then
    return redis.error_reply('OUTOFORDER ' .. top .. ' is below ' .. args[9])
  end
  if not head[1] then
    -- A new inbox, or one that was evicted: then it is restored from the log before anything is appended.
    if fences[args[1]].evicted ~= evicted_keys() then
      return stale_token(args[1])
    end
    top = recovered_top(inbox, devices)
    if top == ORIGIN then
      forget_digests(keys[3], tonumber(args[7]))
    end
  end
  local former = top
  local n = (#args - 9) / 4
  local added = {}
  local start = 1
  while start <= n and not less(top, args[6 + start * 4]) do
    added[start] = '0'
    start = start + 1
  end
  if start > n then
    return {former, table.concat(added)}
  end

  local fresh = {}
  for i = start, n do
    fresh[#fresh + 1] = args[8 + i * 4]
  end
  -- Of one alone, adding it tells whether it was there.
  local now_seen = #fresh > 1 and redis.call('SMISMEMBER', keys[3], unpack(fresh))
  local before_seen = redis.call('SMISMEMBER', keys[4], unpack(fresh))
  -- A copy may be in the log's next window: the clock of its broker was set back, or a dead letter is redriven.
  local after_seen = redis.call('SMISMEMBER', keys[6], unpack(fresh))
  local length = redis.call('XLEN', inbox)
  local is_absent = length == 0 and redis.call('EXISTS', inbox) == 0
  if is_absent and head[1] then
    -- What was in the stream has expired, if it was not evicted.
    if fences[args[1]].evicted ~= evicted_keys() then
      return stale_token(args[1])
    end
    floor = raised_floor(devices, floor, top)
  end
  -- The first write, after each key was read once: what fails leaves no digest behind, or it would be lost as a retry.
  local unseen = redis.call('SADD', keys[3], unpack(fresh))
  now_seen = now_seen or {1 - unseen}
  local was_empty = length == 0

  local max_messages, max_bytes = tonumber(args[4]), tonumber(args[5])
  local removed = tonumber(head[4] or '0')
  local crowded = head[6]
  local oldest = tonumber(args[8]) - tonumber(args[3]) / 1000
  local chunks, none_expired = 0, false
  -- What has expired counts for nothing: it is removed where the room is needed, some at a time. If more than this call
  -- may remove has expired, there is room.
  local function is_full(json)
    while true do
      if bytes - removed + #json > max_bytes then
        removed = removed_bytes(inbox, bytes)
      end
      if length < max_messages and bytes - removed + #json <= max_bytes then
        return false
      end
      -- Asked of the first entry, and once: a chunk of large messages for each that comes takes all of Redis's time.
      none_expired = none_expired or not has_expired(inbox, oldest)
      if none_expired or chunks == EXPIRED_CHUNKS then
        return none_expired
      end
      local count, last = remove_expired(inbox, oldest)
      chunks, length = chunks + 1, length - count
      if not floor or less(floor, last) then
        floor = last
        redis.call('HSET', devices, 'floor', floor)
      end
    end
  end
  -- One noisy conversation must not push out the others: past the quota each sender still has a small share.
  local function is_granted(json)
    if length >= 2 * max_messages or bytes - removed + #json > 2 * max_bytes then
      return false
    end
    local sender = sender_of(json)
    local granted = redis.call('HMGET', keys[5], 'n:' .. sender, 'b:' .. sender)
    local messages, size = tonumber(granted[1] or '0') + 1, tonumber(granted[2] or '0') + #json
    if messages > max_messages / SHARES or size > max_bytes / SHARES then
      return false
    end
    redis.call('HSET', keys[5], 'n:' .. sender, messages, 'b:' .. sender, size)
    redis.call('PEXPIRE', keys[5], args[3])
    crowded = '1'
    return true
  end
  if crowded and not is_full('') then
    redis.call('DEL', keys[5])
    redis.call('HDEL', devices, 'crowded')
    crowded = false
  end
  local twice = {}
  for i = start, n do
    local at = 6 + i * 4
    local digest, json = args[at + 2], args[at + 3]
    if floor and not less(floor, args[at]) then
      added[i] = '0'  -- acknowledged already: the log is replayed into an inbox that was lost
    elseif
      now_seen[i - start + 1] == 1
      or before_seen[i - start + 1] == 1
      or after_seen[i - start + 1] == 1
      or twice[digest]
    then
      added[i] = '0'
    elseif is_full(json) and not is_granted(json) then
      local from = top
      if gap then
        local entry = redis.call('XRANGE', inbox, gap, gap)[1]
        if entry then
          from = entry[2][6]
          redis.call('XDEL', inbox, gap)
        end
      end
      redis.call('XADD', inbox, args[at], 't', args[at + 1], 'c', digits(bytes), 'g', from)
      gap = args[at]
      added[i] = '2'
    else
      bytes = bytes + #json
      redis.call('XADD', inbox, args[at], 't', args[at + 1], 'c', digits(bytes), 'm', json)
      length = length + 1
      gap = false
      added[i] = '1'
    end
    twice[digest] = true
    top = args[at]
  end
  if is_absent and length == 0 and not gap then
    -- An empty stream tells that nothing was removed from it; an absent one that all of it was.
    redis.call('XADD', inbox, top, 't', '0')
    redis.call('XDEL', inbox, top)
  end
  -- Setting an expiry costs as much as adding an entry: it is done seldom, and where a key is new.
  local ttl_ms, window_ms, now = tonumber(args[3]), tonumber(args[7]), tonumber(args[8])
  local due = not head[7] or 1000 * (now - tonumber(head[7])) >= math.min(ttl_ms, window_ms) / TOUCHES
  if due then
    redis.call('HSET', devices, 'top', top, 'bytes', digits(bytes), 'removed', digits(removed), 'touched', args[8])
    touch(keys, ttl_ms)
  else
    redis.call('HSET', devices, 'top', top, 'bytes', digits(bytes), 'removed', digits(removed))
    if was_empty then
      redis.call('PEXPIRE', inbox, ttl_ms)
    end
  end
  if crowded then
    redis.call('HSET', devices, 'crowded', '1')
  end
  if gap then
    redis.call('HSET', devices, 'gap', gap)
  elseif head[3] then
    redis.call('HDEL', devices, 'gap')
  end
  local digests = redis.call('SCARD', keys[3])
  if digests > tonumber(args[6]) then
    redis.call('RENAME', keys[3], keys[4])
    redis.call('PEXPIRE', keys[4], 3 * window_ms)
  elseif due or digests == unseen then
    redis.call('PEXPIRE', keys[3], 3 * window_ms)
  end
  return {former, table.concat(added)}
end

-- Add a gap for messages that are lost: the log no longer has them, and they were never appended, or were lost here, too.
-- What waits in the inbox below the gap stays to be read.
-- keys: inbox, devices; args: partition, fencing token, the messages in (after, until] are lost, TTL in ms
-- Returns 1 if the user is to be told of the range, 0 if the inbox is above it, or there is no such user any more.
local function miss(keys, args)
  if not is_current(args[1], args[2]) or fences[args[1]].evicted ~= evicted_keys() then
    return stale_token(args[1])
  end
  local inbox, devices, until_ = keys[1], keys[2], args[4]
  local head = redis.call('HMGET', devices, 'top', 'floor', 'bytes')
  local top, after = head[1], args[3]
  if not top then
    top = redis.call('EXISTS', devices) == 1 and recovered_top(inbox, devices) or ORIGIN
  end
  if top == until_ then
    return 1
  end
  if less(until_, top) or (head[2] and not less(head[2], until_)) or redis.call('EXISTS', devices) == 0 then
    return 0
  end
  if less(after, top) then
    after = top
  end
  if head[1] and redis.call('EXISTS', inbox) == 0 then
    raised_floor(devices, head[2], top)
  end
  redis.call('XADD', inbox, until_, 't', digits((clock())), 'c', head[3] or '0', 'g', after)
  redis.call('HSET', devices, 'top', until_, 'gap', until_)
  touch(keys, args[5])
  return 1
end

-- Read a page of an inbox. Messages that the reading device has acknowledged are left out: an acknowledgement from its
-- earlier connection may arrive after this connection began.
-- keys: inbox, devices
-- args: after, the largest number of messages and of bytes, the time before which messages are too old (s),
--       the device that reads, or ""
-- Returns {"messages", after, until, first, count, JSON objects joined by commas} or {"missed", after, until}.
local function read(keys, args)
  local inbox, devices, after = keys[1], keys[2], args[1]
  local limit, limit_bytes, oldest = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local head = redis.call('HMGET', devices, 'top', 'floor', 'd:' .. args[5])
  local top, floor = head[1] or ORIGIN, head[2] or ORIGIN
  local begin = after
  if head[3] then
    local cursor = device_of(head[3])
    if less(begin, cursor) then
      begin = cursor
    end
  end
  if less(begin, floor) then
    return {'missed', after, floor}
  end
  if less(begin, top) and redis.call('EXISTS', inbox) == 0 then
    return {'missed', after, top}
  end
  local parts, count, bytes, first, last, missed = {}, 0, 0, false, begin, false
  local skipped, skipped_bytes = 0, 0
  while true do
    local want = math.min(CHUNK, limit - count)
    local entries = redis.call('XRANGE', inbox, '(' .. last, '+', 'COUNT', want)
    for _, entry in ipairs(entries) do
      local value = entry[2]
      if value[5] == 'g' or tonumber(value[2]) < oldest then
        if count > 0 then
          return {'messages', after, last, first, count, table.concat(parts, ',')}
        end
        missed = entry[1]
        last = missed
        skipped, skipped_bytes = skipped + 1, skipped_bytes + #value[6]
        if skipped >= MOST_EXPIRED or skipped_bytes >= MOST_EXPIRED_BYTES then
          return {'missed', after, missed}
        end
      else
        if missed then
          return {'missed', after, missed}
        end
        bytes = bytes + #value[6]
        if count > 0 and bytes > limit_bytes then
          return {'messages', after, last, first, count, table.concat(parts, ',')}
        end
        count = count + 1
        parts[count] = value[6]
        last = entry[1]
        first = first or last
        if count >= limit then
          return {'messages', after, last, first, count, table.concat(parts, ',')}
        end
      end
    end
    if #entries < want then
      break
    end
  end
  if missed then
    return {'missed', after, missed}
  end
  if less(last, top) then
    last = top
  end
  return {'messages', after, last, first or '', count, table.concat(parts, ',')}
end

-- Store the traceparents of sampled messages.
-- keys: traced; args: the largest number kept, TTL in ms, then for each sampled message: position, traceparent
local function keep_parents(keys, args)
  for i = 3, #args, 2 do
    -- What comes again, because its record does, is refused: its position is not above the last.
    redis.pcall('XADD', keys[1], 'MAXLEN', args[1], args[i], 'p', args[i + 1])
  end
  redis.call('PEXPIRE', keys[1], args[2])
end

-- keys: traced; args: first and last position. Returns the traceparents of the sampled messages from first to last.
local function parents_of(keys, args)
  local parents = {}
  for i, entry in ipairs(redis.call('XRANGE', keys[1], args[1], args[2])) do
    parents[i] = entry[2][2]
  end
  return parents
end

-- keys: any, so that it is known which server is asked. Returns the time by this server, s since the epoch.
local function time_of()
  return (clock())
end

-- keys: devices. Returns the highest position ever applied.
local function top_of(keys)
  return redis.call('HGET', keys[1], 'top') or ORIGIN
end

-- Forget the devices not seen since `oldest`, then, while there are more than `most`, the one not seen for longest, but
-- never `keep`. Returns device -> value of the others.
local function living_devices(devices, oldest, most, keep)
  local living, order = {}, {}
  local all = redis.call('HGETALL', devices)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'd:' then
      local _, seen = device_of(all[i + 1])
      if seen < oldest then
        redis.call('HDEL', devices, all[i])
      else
        living[all[i]] = all[i + 1]
        order[#order + 1] = {all[i] == keep and math.huge or seen, all[i]}
      end
    end
  end
  if #order > most then
    table.sort(order, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
    for i = 1, #order - most do
      redis.call('HDEL', devices, order[i][2])
      living[order[i][2]] = nil
    end
  end
  return living
end

-- Remove the messages that all devices have acknowledged, and raise the floor with them: a forgotten device that comes
-- back with a lower cursor is told what it missed.
local function trim(keys, living)
  local lowest = false
  for _, value in pairs(living) do
    local cursor = device_of(value)
    if not lowest or less(cursor, lowest) then
      lowest = cursor
    end
  end
  if not lowest or lowest == ORIGIN then
    return 0
  end
  local removed = redis.call('XTRIM', keys[1], 'MINID', '=', following(lowest))
  if removed > 0 then
    redis.call('HSET', keys[2], 'floor', lowest)
  end
  return removed
end

-- Register a device and number its new connection. The number is the time in ms, or the last number plus one if that is
-- higher, so that it rises even if Redis lost the last one. The position that the client claims to have counts as
-- acknowledged, since the acknowledgement may have been lost with a connection that broke.
-- keys: inbox, devices
-- args: device, TTL in ms, the largest number of devices, the position that the client claims to have or "", the highest
--       position that it may claim above the top
-- Returns {cursor, connection number, top, floor, number of messages removed}.
local function hello(keys, args)
  local devices, field = keys[2], 'd:' .. args[1]
  local now, now_ms = clock()
  local head = redis.call('HMGET', devices, 'top', 'floor', field)
  local top, floor = head[1] or ORIGIN, head[2] or ORIGIN
  local cursor, number, moved = floor, 0, false
  if head[3] then
    local _
    cursor, _, number = device_of(head[3])
  end
  if args[4] ~= '' and less(cursor, args[4]) then
    local highest = less(top, args[5]) and args[5] or top
    local claim = less(highest, args[4]) and highest or args[4]
    if less(cursor, claim) then
      cursor, moved = claim, true
    end
  end
  number = math.max(number + 1, now_ms)
  redis.call('HSET', devices, field, cursor .. ' ' .. digits(now) .. ' ' .. digits(number))
  local living = living_devices(devices, now - math.floor(tonumber(args[2]) / 1000), tonumber(args[3]), field)
  local removed = moved and trim(keys, living) or 0
  touch(keys, args[2])
  return {cursor, number, top, floor, removed}
end

-- Raise the cursor of a device. keys: inbox, devices; args: device, position, TTL in ms, the largest number of devices.
-- Returns the number of messages removed.
local function acknowledge(keys, args)
  local devices, field, now = keys[2], 'd:' .. args[1], clock()
  local value = redis.call('HGET', devices, field)
  local cursor, number = ORIGIN, 0
  if value then
    local _
    cursor, _, number = device_of(value)
  end
  if less(cursor, args[2]) then
    cursor = args[2]
  end
  redis.call('HSET', devices, field, cursor .. ' ' .. digits(now) .. ' ' .. digits(number))
  local living = living_devices(devices, now - math.floor(tonumber(args[3]) / 1000), tonumber(args[4]), field)
  local removed = trim(keys, living)
  touch(keys, args[3])
  return removed
end

-- Restore devices from the log; newer values are kept. In an inbox that was lost, the floor becomes the lowest cursor,
-- so that messages which all devices have are not appended again, or the position up to which the log has nothing.
-- keys: inbox, devices; args: TTL in ms, the position up to which the log has nothing any more, or "" if it is not
-- applied from its beginning on, then for each device: device, cursor, for how long it was not seen (s), connection
-- number
local function restore(keys, args)
  local inbox, devices, now = keys[1], keys[2], clock()
  local lowest = false
  for i = 3, #args, 4 do
    local field, cursor, seen, number = 'd:' .. args[i], args[i + 1], now - tonumber(args[i + 2]), tonumber(args[i + 3])
    local value = redis.call('HGET', devices, field)
    if value then
      local old_cursor, old_seen, old_number = device_of(value)
      if less(cursor, old_cursor) then
        cursor = old_cursor
      end
      seen, number = math.max(seen, old_seen), math.max(number, old_number)
    end
    redis.call('HSET', devices, field, cursor .. ' ' .. digits(seen) .. ' ' .. digits(number))
    if not lowest or less(cursor, lowest) then
      lowest = cursor
    end
  end
  if args[2] ~= '' and redis.call('EXISTS', inbox) == 0 then
    -- All is applied again that is above the lowest cursor, also where the stream was evicted alone.
    redis.call('HDEL', devices, 'top', 'bytes', 'removed', 'gap')
    local floor = lowest or ORIGIN
    redis.call('HSET', devices, 'floor', less(floor, args[2]) and args[2] or floor)
  elseif not redis.call('HGET', devices, 'top') then
    -- Of devices that were evicted alone: what left the stream meanwhile does not come back.
    recovered_top(inbox, devices)
    local floor = redis.call('HGET', devices, 'floor')
    if lowest and (not floor or less(floor, lowest)) then
      redis.call('HSET', devices, 'floor', lowest)
    end
  end
  touch(keys, args[1])
  return lowest or ORIGIN
end

-- Set the watermark of a partition, if the fencing token is current and no key was evicted since it was set.
-- keys: the watermark of the partition on this server; args: partition, token, the offset below which all is applied,
-- TTL in ms. Returns 1 if so, else 0.
local function mark(keys, args)
  if not is_current(args[1], args[2]) or fences[args[1]].evicted ~= evicted_keys() then
    return 0
  end
  redis.call('SET', keys[1], args[3], 'PX', args[4])
  redis.call('PEXPIRE', fences[args[1]].sentinel, args[4])
  return 1
end

-- Drop the fencing token of a partition and reset its watermark, as if this server had lost everything.
-- keys: the watermark of the partition on this server; args: partition
local function invalidate(keys, args)
  fences[args[1]] = nil
  redis.call('SET', keys[1], '0')
  return 1
end

-- Lease a slot of the gateways, or renew the lease. keys: the lease of the slot, its last epoch; args: the id of this
-- gateway process, TTL in ms. Returns the epoch, always above those of earlier holders, or 0 if another gateway holds the
-- slot.
local function lease(keys, args)
  local value = redis.call('GET', keys[1])
  if value then
    local owner, epoch = string.match(value, '^(%S+) (%d+)$')
    if owner ~= args[1] then
      return 0
    end
    redis.call('PEXPIRE', keys[1], args[2])
    return tonumber(epoch)
  end
  local last = tonumber(redis.call('GET', keys[2]) or '0')
  local _, now_ms = clock()
  local epoch = math.max(last + 1, now_ms)
  redis.call('SET', keys[1], args[1] .. ' ' .. digits(epoch), 'PX', args[2])
  redis.call('SET', keys[2], digits(epoch))
  return epoch
end

-- Release the lease of a slot, if this gateway process holds it. keys: the lease; args: the id of the process
local function release(keys, args)
  local value = redis.call('GET', keys[1])
  if value and string.match(value, '^(%S+) ') == args[1] then
    redis.call('DEL', keys[1])
    return 1
  end
  return 0
end

-- The number of calls of this version's functions on this server: those of a version that nobody calls are deleted.
local calls = 0

-- Functions that free memory, or need none, run even in a full Redis: else no client could connect and empty its inbox.
local function register(name, callback, ...)
  local function counted(keys, args)
    calls = calls + 1
    return callback(keys, args)
  end
  redis.register_function{function_name = name, callback = counted, flags = {...}}
end

redis.register_function{function_name = 'cc_calls', callback = function() return calls end, flags = {'no-writes'}}

register('cc_fence', fence, 'allow-oom', 'allow-cross-slot-keys')
-- The sentinel that an append reads is in a hash slot of its own, on the same server.
register('cc_append', append, 'allow-cross-slot-keys')
register('cc_miss', miss, 'allow-cross-slot-keys')
register('cc_read', read, 'no-writes')
register('cc_keep_parents', keep_parents)
register('cc_parents', parents_of, 'no-writes')
register('cc_time', time_of, 'no-writes')
register('cc_top', top_of, 'no-writes')
register('cc_hello', hello, 'allow-oom')
register('cc_acknowledge', acknowledge, 'allow-oom')
register('cc_restore', restore)
register('cc_mark', mark, 'allow-oom', 'allow-cross-slot-keys')
register('cc_invalidate', invalidate, 'allow-oom')
register('cc_lease', lease, 'allow-oom')
register('cc_release', release, 'allow-oom')
