-- Tells how a call is going or has ended.
-- KEYS: breaker, lease of the probe.
-- ARGV: open_s, token, epoch, 'answering', 'success', 'failure' or 'none', threshold, topic.
-- Returns the breaker's state, epoch, failures and seconds left.
local breaker = breaker_of(KEYS[1])
local open_s = number(ARGV[1])
local verdict = ARGV[4]
if breaker.epoch == number(ARGV[3]) then
  local failures = breaker.failures
  if breaker.state == 'half_open' then
    if verdict ~= 'answering' and redis.call('HGET', KEYS[2], 'token') == ARGV[2] then
      redis.call('DEL', KEYS[2])
    end
    if verdict == 'failure' then
      enter(breaker, 'open')
    elseif verdict ~= 'none' then
      enter(breaker, 'closed')
    end
  elseif verdict == 'success' then
    breaker.failures = 0
  elseif verdict == 'failure' then
    breaker.failures = breaker.failures + 1
    if breaker.failures >= number(ARGV[5]) then
      enter(breaker, 'open')
    end
  end
  if breaker.epoch ~= number(ARGV[3]) or breaker.failures ~= failures then
    save_breaker(KEYS[1], breaker)
    tell(ARGV[6], breaker, open_s)
  end
end
return shown(breaker, open_s)
