-- ARGV[1] holds, with spaces between: 1 incarnation, 2 fence, 3 nonce, 4 expected seq, 5 lease ms, 6 release 0/1,
-- 7 progress 0/1, 8 checksum of the last record, 9 most bytes, 10 most records, 11 snapshot 0/1, 12 turn, 13 trim 0/1,
-- 14 history, 15 consumed or -1, 16 fields, 17 answers, 18 blobs that stay or -1 for all. After it: the snapshot, pairs
-- of fields, pairs of answers, names of blobs, records.
local incarnation, fence, nonce, expected, lease_ms, release, progress, last_crc, most_bytes, most_records,
  with_snapshot, new_turn, trim, history, consumed, fields, answers, blobs = string.match(ARGV[1], '^(%S+) (%S+) (%S+) (%d+) ' ..
  '(%d+) ([01]) ([01]) (%d+) (%d+) (%d+) ([01]) (%d+) ([01]) (%d+) (%-?%d+) (%d+) (%d+) (%-?%d+)$')
if not incarnation then return redis.error_reply('ERR the first value of a commit is not what it should be') end
local meta = redis.call('HMGET', KEYS[1], 'inc', 'fence', 'nonce', 'owner',
  'seq', 'last', 'hb', 'jb', 'sb', 'hs', 'bb', 'keep', 'inbox', 'posted', 'turn', 'attempts', 'ends')
local refusal = fenced(incarnation, fence, nonce, meta)
if refusal then return refusal end
local now = now_ms()
local seq, last = tonumber(meta[5]), meta[6]
local jb, sb, hs, bb = tonumber(meta[8]), tonumber(meta[9]), tonumber(meta[10]), tonumber(meta[11])
local inbox, posted, old_turn = tonumber(meta[13]), tonumber(meta[14]), tonumber(meta[15])
expected, new_turn, history, consumed = tonumber(expected), tonumber(new_turn), tonumber(history), tonumber(consumed)
local has_snapshot = with_snapshot == '1'
local snapshot = has_snapshot and ARGV[2] or ''
local fields_at = has_snapshot and 3 or 2
local answers_at = fields_at + 2 * fields
local blobs_at = answers_at + 2 * answers
local records_at = blobs_at + math.max(0, tonumber(blobs))
local n = #ARGV - records_at + 1
if n < 0 then return redis.error_reply('ERR a commit lacks values') end
local lease_until = release == '1' and 0 or now + lease_ms

-- Records that were applied already, by a call whose reply was lost, are known by the checksum in their header.
local applied = seq - expected
if applied ~= 0 then
  if applied < 0 or applied > n then return {'SEQ', seq, last} end
  local a, b, c, d = string.byte(ARGV[records_at + applied - 1], 23, 26)
  if ((a * 256 + b) * 256 + c) * 256 + d ~= tonumber(last) then return {'SEQ', seq, last} end
  records_at = records_at + applied
  n = n - applied
end

local trims = has_snapshot and trim == '1'
local added = 0
for i = records_at, #ARGV do added = added + #ARGV[i] end
if trims then jb = 0 else jb = jb + added end
local unused = {}
if trims and blobs ~= '-1' and bb > 0 then -- also those of which a worker that died wrote no record
  local stays = {}
  for i = blobs_at, blobs_at + tonumber(blobs) - 1 do stays[ARGV[i]] = true end
  bb = 0
  for _, name in ipairs(redis.call('HKEYS', KEYS[7])) do
    if stays[name] then bb = bb + redis.call('HSTRLEN', KEYS[7], name) else unused[#unused + 1] = name end
  end
end
local archives = has_snapshot and history > 0 and sb > 0 and old_turn ~= new_turn
local later_hs = archives and hs + sb or hs
local later_sb = has_snapshot and #snapshot or sb
local total = jb + later_sb + later_hs + bb
if total > tonumber(most_bytes) then return {'TOOBIG', total} end
if not trims and n > 0 and redis.call('XLEN', KEYS[2]) + n > tonumber(most_records) then return {'TOOLONG', seq} end
if consumed >= 0 then inbox = math.max(inbox, math.min(consumed, posted)) end
local retention = meta[12]
for i = fields_at, answers_at - 1, 2 do
  if ARGV[i] == 'keep' then retention = ARGV[i + 1] end
end
local ends, is_new_end = ending(now, retention, meta[17])

-- From here on only writes.
for i = records_at, #ARGV do
  seq = seq + 1
  add_record(seq, ARGV[i], ends)
end
if n > 0 then last = last_crc end
if has_snapshot then
  if archives then
    redis.call('HSET', KEYS[4], old_turn, redis.call('GET', KEYS[3]))
    redis.call('PEXPIREAT', KEYS[4], ends)
    hs = later_hs
    local turns = redis.call('HKEYS', KEYS[4])
    table.sort(turns, function(a, b) return tonumber(a) < tonumber(b) end)
    for i = 1, #turns - history do
      hs = hs - redis.call('HSTRLEN', KEYS[4], turns[i])
      redis.call('HDEL', KEYS[4], turns[i])
    end
  end
  redis.call('SET', KEYS[3], snapshot, 'PXAT', ends)
  if trims then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%d-0', seq + 1)) end
  for _, name in ipairs(unused) do redis.call('HDEL', KEYS[7], name) end
  redis.call('HSET', KEYS[1], 'snap', seq, 'turn', new_turn, 'sb', later_sb, 'hs', hs, 'bb', bb)
end
redis.call('HSET', KEYS[1], 'seq', seq, 'last', last, 'hb', tonumber(meta[7]) + 1, 'until', lease_until,
  'updated', now, 'jb', jb)
if progress == '1' and meta[16] ~= '0' then redis.call('HSET', KEYS[1], 'attempts', 0) end
if consumed >= 0 then
  redis.call('HSET', KEYS[1], 'inbox', inbox)
  redis.call('XTRIM', KEYS[5], 'MINID', string.format('%d-0', inbox + 1))
end
if answers_at > fields_at then redis.call('HSET', KEYS[1], unpack(ARGV, fields_at, answers_at - 1)) end
for i = answers_at, blobs_at - 1, 2 do
  local number = string.match(redis.call('HGET', KEYS[6], ARGV[i]) or '0', '^%d+')
  redis.call('HSET', KEYS[6], ARGV[i], number .. ' ' .. ARGV[i + 1])
end
if blobs_at > answers_at then redis.call('PEXPIREAT', KEYS[6], ends) end
if is_new_end then keep_all(ends) end
return {'OK', now, posted - inbox}
