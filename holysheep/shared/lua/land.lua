-- Ends a flight: keeps its answer, gives it to those who follow, and frees the lead.
-- KEYS: entry, lease, landed.
-- ARGV: token, value or '', ttl_s or '' to keep nothing, seconds to keep it after that, landed_s, topic.
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'value', ARGV[2], 'stored', text(now), 'ttl', ARGV[3])
  expire(KEYS[1], number(ARGV[3]) + number(ARGV[4]))
end
local lease = redis.call('HMGET', KEYS[2], 'token', 'followed')
local is_own = lease[1] == ARGV[1]
if is_own then
  redis.call('DEL', KEYS[2])
end
-- Where the lease was lost, nobody knows whether somebody follows.
if not is_own or lease[2] then
  if ARGV[2] ~= '' then
    redis.call('SET', KEYS[3], ARGV[2], 'PX', math.ceil(number(ARGV[5]) * 1000))
  end
  news(ARGV[6], '')
end
return 1
