-- Finds a fresh answer, or what the flight that was followed has landed, or takes the lead.
-- KEYS: entry, lease, landed. ARGV: whether to read, ttl_s, token, lease_s.
-- Returns {'hit', value}, {'landed', value}, {'follow', token, seconds} or {'lead'}.
if ARGV[1] == '1' then
  local entry = redis.call('HMGET', KEYS[1], 'value', 'stored', 'ttl')
  if entry[1] and now - number(entry[2]) < math.min(number(entry[3]), number(ARGV[2])) then
    return {'hit', entry[1]}
  end
end
local landed = redis.call('GET', KEYS[3])
if landed then
  return {'landed', landed}
end
local leader, left = lease_of(KEYS[2])
if leader then
  redis.call('HSET', KEYS[2], 'followed', '1')
  return {'follow', leader, text(left)}
end
take_lease(KEYS[2], ARGV[3], number(ARGV[4]))
return {'lead'}
