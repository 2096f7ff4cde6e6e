-- Whether scripts run and may do all that the others do: a user may be allowed some of it only.
-- KEYS: any key.

-- First what needs memory: once a script has written, Redis lets it write on.
redis.call('SET', KEYS[1], text(now))
redis.call('GET', KEYS[1])
redis.call('EXISTS', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'at', text(now))
redis.call('HSETNX', KEYS[1], 'at', text(now))
redis.call('HMGET', KEYS[1], 'at')
redis.call('HGET', KEYS[1], 'at')
redis.call('HGETALL', KEYS[1])
redis.call('HKEYS', KEYS[1])
redis.call('HDEL', KEYS[1], 'at')
expire(KEYS[1], 1)
news('check', '')
return 1
