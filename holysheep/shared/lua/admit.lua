-- Lets a call through, or not. While half open, one across all processes.
-- KEYS: breaker, lease of the probe. ARGV: open_s, token, lease_s, topic.
-- Returns {'yes', 'probe' or 'no'}, and the breaker's state, epoch, failures and seconds left.
local breaker = breaker_of(KEYS[1])
local open_s = number(ARGV[1])
if breaker.state == 'open' and now >= breaker.opened_at + open_s then
  enter(breaker, 'half_open')
  save_breaker(KEYS[1], breaker)
  tell(ARGV[4], breaker, open_s)
elseif breaker.is_new then
  save_breaker(KEYS[1], breaker)
end
local verdict = 'no'
if breaker.state == 'closed' then
  verdict = 'yes'
elseif breaker.state == 'half_open' and not lease_of(KEYS[2]) then
  take_lease(KEYS[2], ARGV[2], number(ARGV[3]))
  verdict = 'probe'
end
return {verdict, unpack(shown(breaker, open_s))}
