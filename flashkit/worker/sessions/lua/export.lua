-- Returns time, meta, snapshot, journal, earlier snapshots and blobs as of one moment.
return {now_ms(), redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[3]), redis.call('XRANGE', KEYS[2], '-', '+'),
  redis.call('HGETALL', KEYS[4]), redis.call('HGETALL', KEYS[7])}
