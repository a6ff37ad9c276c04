-- Returns time, meta, snapshot and journal as of one moment.
return {now_ms(), redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[3]), redis.call('XRANGE', KEYS[2], '-', '+')}
