-- ARGV[1] holds, with spaces between: 1 incarnation, 2 fence, 3 nonce, 4 expected seq, 5 lease ms, 6 release 0/1,
-- 7 progress 0/1, 8 checksum of the last record, 9 most bytes, 10 most records, 11 snapshot 0/1, 12 turn, 13 trim 0/1,
-- 14 history, 15 consumed or -1, 16 fields, 17 answers. After it: the snapshot, pairs of fields, pairs of answers, records.
local given = {}
for word in string.gmatch(ARGV[1], '%S+') do given[#given + 1] = word end
for at = 4, 17 do
  if not tonumber(given[at]) then return redis.error_reply('ERR value ' .. at .. ' of a commit is not a number') end
end
local refusal = fenced(given[1], given[2], given[3])
if refusal then return refusal end
local now = now_ms()
local meta = redis.call('HMGET', KEYS[1],
  'seq', 'last', 'hb', 'jb', 'sb', 'hs', 'bb', 'keep', 'inbox', 'posted', 'turn', 'attempts')
local seq, jb, sb, hs, bb = tonumber(meta[1]), tonumber(meta[4]), tonumber(meta[5]), tonumber(meta[6]), tonumber(meta[7])
local inbox, posted = tonumber(meta[9]), tonumber(meta[10])
local expected, release, consumed = tonumber(given[4]), given[6] == '1', tonumber(given[15])
local has_snapshot = given[11] == '1'
local snapshot = has_snapshot and ARGV[2] or ''
local fields_at = has_snapshot and 3 or 2
local answers_at = fields_at + 2 * given[16]
local records_at = answers_at + 2 * given[17]
local answers_end = records_at - 1
local n = #ARGV - records_at + 1
if n < 0 then return redis.error_reply('ERR a commit lacks values') end
local lease_until = release and 0 or now + tonumber(given[5])

-- Records that were applied already, by a call whose reply was lost, are known by the checksum in their header.
local applied = seq - expected
if applied ~= 0 then
  if applied < 0 or applied > n then return {'SEQ', seq, meta[2]} end
  local a, b, c, d = string.byte(ARGV[records_at + applied - 1], 23, 26)
  if ((a * 256 + b) * 256 + c) * 256 + d ~= tonumber(meta[2]) then return {'SEQ', seq, meta[2]} end
  records_at = records_at + applied
  n = n - applied
end

local trims = has_snapshot and given[13] == '1'
local old_turn, new_turn, history = tonumber(meta[11]), tonumber(given[12]), tonumber(given[14])
local added = 0
for i = records_at, #ARGV do added = added + #ARGV[i] end
if trims then jb = 0 else jb = jb + added end
local archives = has_snapshot and history > 0 and sb > 0 and old_turn ~= new_turn
local later_hs = archives and hs + sb or hs
local later_sb = has_snapshot and #snapshot or sb
local total = jb + later_sb + later_hs + bb
if total > tonumber(given[9]) then return {'TOOBIG', total} end
if not trims and n > 0 and redis.call('XLEN', KEYS[2]) + n > tonumber(given[10]) then return {'TOOLONG', seq} end
if consumed >= 0 then inbox = math.max(inbox, math.min(consumed, posted)) end

-- From here on only writes.
for i = records_at, #ARGV do
  seq = seq + 1
  redis.call('XADD', KEYS[2], string.format('%d-0', seq), 'r', ARGV[i])
end
local last = n > 0 and given[8] or meta[2]
if has_snapshot then
  if archives then
    redis.call('HSET', KEYS[4], old_turn, redis.call('GET', KEYS[3]))
    hs = later_hs
    local turns = redis.call('HKEYS', KEYS[4])
    table.sort(turns, function(a, b) return tonumber(a) < tonumber(b) end)
    for i = 1, #turns - history do
      hs = hs - redis.call('HSTRLEN', KEYS[4], turns[i])
      redis.call('HDEL', KEYS[4], turns[i])
    end
  end
  redis.call('SET', KEYS[3], snapshot)
  if trims then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%d-0', seq + 1)) end
  redis.call('HSET', KEYS[1], 'snap', seq, 'turn', new_turn, 'sb', later_sb, 'hs', hs)
end
redis.call('HSET', KEYS[1], 'seq', seq, 'last', last, 'hb', tonumber(meta[3]) + 1, 'until', lease_until,
  'updated', now, 'jb', jb)
if given[7] == '1' then redis.call('HSET', KEYS[1], 'attempts', 0) end
if consumed >= 0 then
  redis.call('HSET', KEYS[1], 'inbox', inbox)
  redis.call('XTRIM', KEYS[5], 'MINID', string.format('%d-0', inbox + 1))
end
for i = fields_at, answers_at - 1, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
for i = answers_at, answers_end, 2 do
  local number = string.match(redis.call('HGET', KEYS[6], ARGV[i]) or '0', '^%d+')
  redis.call('HSET', KEYS[6], ARGV[i], number .. ' ' .. ARGV[i + 1])
end
keep(redis.call('HGET', KEYS[1], 'keep'))
return {'OK', now, posted - inbox}
