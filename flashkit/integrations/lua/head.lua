-- Shared by all scripts about one thread. KEYS[1] is one hash with all of the thread, so that it has one lifetime
-- and one slot. Its fields, with NUL where a dot stands: h.ns head; c.ns.id checkpoint; b.ns.channel.version value;
-- w.ns.id.task.index write; n.ns.id names of that checkpoint's writes, NUL after each; r count of changes.
-- Every check stands before the first write, and any script may run twice.

local NUL = '\0'

local function changed(ttl_ms)
  redis.call('HINCRBY', KEYS[1], 'r', 1)
  redis.call('PEXPIRE', KEYS[1], ttl_ms)
end

local function in_chunks(first, last, step, visit)
  for start = first, last, step do
    visit(start, math.min(start + step - 1, last))
  end
end
