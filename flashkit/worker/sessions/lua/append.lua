-- The most frequent write, and so a script of its own: records of steps, and nothing else. Answers {'FULL'} when more
-- is to be done than that; `commit.lua` does all of it, and has more to say about the checks.
-- KEYS: 1 meta, 2 journal. ARGV: 1 incarnation, 2 fence, 3 nonce, 4 lease ms, 5 most bytes, 6 most records, 7 expected
-- seq, 8 checksum of the last record, 9 progress 0/1, 10... records.
local meta = redis.call('HMGET', KEYS[1], 'inc', 'fence', 'nonce', 'seq', 'hb', 'jb', 'sb', 'hs', 'bb', 'keep', 'ends',
  'posted', 'inbox', 'attempts')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] or meta[3] ~= ARGV[3] or meta[4] ~= ARGV[7] then return {'FULL'} end
local now = now_ms()
local ends, is_new_end = ending(now, meta[10], meta[11])
local seq, hb, jb, n = meta[4] + 0, meta[5] + 1, meta[6] + 0, #ARGV - 9
local lease_until, most_bytes, most_records, last = now + ARGV[4], ARGV[5] + 0, ARGV[6] + 0, ARGV[8] + 0
local progress, pending = ARGV[9] + 0, meta[12] - meta[13]
for i = 10, #ARGV do jb = jb + #ARGV[i] end
if is_new_end or jb + meta[7] + meta[8] + meta[9] > most_bytes then return {'FULL'} end
-- There are no more records in the journal than were ever written.
if seq + n > most_records and redis.call('XLEN', KEYS[2]) + n > most_records then return {'FULL'} end

-- From here on only writes.
for i = 10, #ARGV do
  seq = seq + 1
  add_record(seq, ARGV[i], ends)
end
redis.call('HSET', KEYS[1], 'seq', seq, 'last', last, 'hb', hb, 'until', lease_until, 'updated', now, 'jb', jb)
if progress == 1 and meta[14] ~= '0' then redis.call('HSET', KEYS[1], 'attempts', 0) end
return {'OK', now, pending}
