-- The breaker of a base URL and model; stands before its scripts. See breaker.py.

local function breaker_of(key)
  local stored = redis.call('HMGET', key, 'state', 'failures', 'opened_at', 'epoch')
  return {
    state = stored[1] or 'closed', failures = number(stored[2], 0),
    opened_at = number(stored[3], 0),
    -- Not from 0 on: reports of calls from before a flush are none of the new breaker's.
    epoch = number(stored[4], math.floor(now * 1000)),
    is_new = not stored[1],
  }
end

local function save_breaker(key, breaker)
  redis.call('HSET', key, 'state', breaker.state, 'failures', text(breaker.failures),
    'opened_at', text(breaker.opened_at), 'epoch', text(breaker.epoch))
  expire(key, 86400)
end

local function enter(breaker, state)
  breaker.state, breaker.failures, breaker.epoch = state, 0, breaker.epoch + 1
  if state == 'open' then
    breaker.opened_at = now
  end
end

local function shown(breaker, open_s)
  local left = breaker.state == 'open' and math.max(0, breaker.opened_at + open_s - now) or 0
  return {breaker.state, text(breaker.epoch), text(breaker.failures), text(left)}
end

local function tell(topic, breaker, open_s)
  news(topic, table.concat(shown(breaker, open_s), ' '))
end
