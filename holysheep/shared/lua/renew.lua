-- Moves the end of a lease on, if it is still its holder's.
-- KEYS: lease. ARGV: token, seconds.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'ends', text(now + number(ARGV[2])))
expire(KEYS[1], number(ARGV[2]) + 1)
return 1
