-- The answer that is kept, however old.
-- KEYS: entry.
return redis.call('HGET', KEYS[1], 'value')
