-- Shared by all scripts about one thread. KEYS[1] is one hash with all of the thread, so that it has one lifetime
-- and one slot. Its fields, with NUL where a dot stands: h.ns head; c.ns.id checkpoint; b.ns.channel.version value;
-- w.ns.id.task.index write; n.ns.id names of that checkpoint's writes, NUL after each; d.digest content; r count of
-- changes. A value or write that begins with # and a digest has its bytes in the content of that digest, so what a
-- task wrote and what its channel then holds are stored once.
-- Every check stands before the first write, and any script may run twice.

local NUL = '\0'

local function digest_in(value)
  return value and string.match(value, '^#(%x+)')
end

local function changed(ttl_ms)
  redis.call('HINCRBY', KEYS[1], 'r', 1)
  redis.call('PEXPIRE', KEYS[1], ttl_ms)
end

local function in_chunks(first, last, step, visit)
  for start = first, last, step do
    visit(start, math.min(start + step - 1, last))
  end
end
