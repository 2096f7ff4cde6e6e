-- Stands before every script. The loader puts the constants of config.py before it, and the
-- server's time in seconds: `local now = ...`.

local function text(number)
  return string.format('%.17g', number)
end

local function number(stored, default)
  return tonumber(stored or default)
end

local function news(topic, payload)
  redis.call('PUBLISH', NEWS, topic .. ' ' .. payload)
end

local function expire(key, seconds)
  -- A number that is too large for Redis would fail the script in the middle.
  redis.call('PEXPIRE', key, math.ceil(math.min(seconds, 1e9) * 1000))
end

-- A lease: whoever has its token holds it, until a moment that is moved on while it is in use.

local function lease_of(key)
  local lease = redis.call('HMGET', key, 'token', 'ends')
  if lease[1] and number(lease[2]) > now then
    return lease[1], number(lease[2]) - now
  end
  return nil
end

local function take_lease(key, token, seconds)
  redis.call('DEL', key)
  redis.call('HSET', key, 'token', token, 'ends', text(now + seconds))
  expire(key, seconds + 1)
end
