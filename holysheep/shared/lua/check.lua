-- Whether scripts run, may write, and may publish.
-- KEYS: any key.
redis.call('SET', KEYS[1], text(now), 'PX', 1000)
news('check', '')
return 1
