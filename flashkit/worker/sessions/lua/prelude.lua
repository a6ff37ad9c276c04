-- Shared by all scripts about one session. KEYS: 1 meta, 2 journal, 3 snapshot, 4 history, 5 inbox, 6 answers,
-- 7 blobs, 8 events; all carry the hash tag {namespace:session}.
-- A script that fails is not rolled back: every check stands before the first write, and the first write is
-- one that a full server refuses.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- All keys of a session end at one time, the meta's field 'ends'. It is put off once less than the retention is left,
-- and then by a 64th more than that, so that few writes have to. Returns when the keys end, and whether that is new:
-- then `keep_all` comes after the writes. Otherwise whoever makes a key gives it that end.
local function ending(now, retention, ends)
  retention, ends = tonumber(retention), tonumber(ends)
  local longest = retention + math.ceil(retention / 64)
  if ends and ends - now >= retention and ends - now <= longest then
    return ends, false
  end
  return now + longest, true
end

local function keep_all(ends)
  redis.call('HSET', KEYS[1], 'ends', ends)
  for key = 1, 7 do
    redis.call('PEXPIREAT', KEYS[key], ends)
  end
end

-- Comes after the first write of a session that begins. Workers of an earlier version gave keys ends of their own: what
-- outlived its meta is not this session's.
local function forget_rest()
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
end

-- Returns nil when the caller's lease is the present one, else the answer to give. What is held may have been
-- read along with other fields: then it is 'inc', 'fence', 'nonce' and 'owner', in this order and first.
local function fenced(mine_incarnation, mine_fence, mine_nonce, held)
  held = held or redis.call('HMGET', KEYS[1], 'inc', 'fence', 'nonce', 'owner')
  if held[1] == mine_incarnation and held[2] == mine_fence and held[3] == mine_nonce then
    return nil
  end
  return {'FENCED', held[1] or '', held[2] or '', held[4] or ''}
end

-- Appends a record to the journal, which begins with it if there is none.
local function add_record(seq, record, ends)
  local id = string.format('%d-0', seq)
  if not redis.call('XADD', KEYS[2], 'NOMKSTREAM', id, 'r', record) then
    redis.call('XADD', KEYS[2], id, 'r', record)
    redis.call('PEXPIREAT', KEYS[2], ends)
  end
end
