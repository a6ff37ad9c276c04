-- Shared by all scripts about one session. KEYS: 1 meta, 2 journal, 3 snapshot, 4 history, 5 inbox, 6 answers,
-- 7 blobs, 8 events; all carry the hash tag {namespace:session}.
-- A script that fails is not rolled back: every check stands before the first write, and the first write is
-- one that a full server refuses.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function keep(ms)
  for key = 1, 7 do
    redis.call('PEXPIRE', KEYS[key], ms)
  end
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
