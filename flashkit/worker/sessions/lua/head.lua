return {now_ms(), redis.call('HGETALL', KEYS[1])}
