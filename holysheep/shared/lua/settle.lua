-- Gives back what was taken and not used, or takes what was used beyond it.
-- KEYS: limits. ARGV: requests and tokens per minute, requests, tokens, whether the call is
-- through, topic.
local buckets = buckets_of(KEYS[1], number(ARGV[1]), number(ARGV[2]))
local somebody_waits = buckets.requests.level < 0 or buckets.tokens.level < 0
put_back(buckets.requests, number(ARGV[3]), ARGV[5] == '1')
put_back(buckets.tokens, number(ARGV[4]), ARGV[5] == '1')
save_buckets(KEYS[1], buckets)
if somebody_waits then
  news(ARGV[6], 'given ' .. text(buckets.requests.given) .. ' ' .. text(buckets.tokens.given))
end
return 1
