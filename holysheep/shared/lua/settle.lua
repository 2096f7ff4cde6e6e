-- Gives back what a call had taken and not used, or takes what it used beyond that.
-- KEYS: limits, line. ARGV: requests and tokens per minute, requests, tokens, topic.
local request_bucket, token_bucket = buckets_of(KEYS[1], number(ARGV[1]), number(ARGV[2]))
local line = line_of(KEYS[2])
local function put_back(bucket, amount)
  if bucket.rate > 0 then
    local level = math.min(bucket.rate, bucket.level + amount)
    bucket.moved = bucket.moved + level - bucket.level
    bucket.level = level
  end
end
put_back(request_bucket, number(ARGV[3]))
put_back(token_bucket, number(ARGV[4]))
save_buckets(KEYS[1], request_bucket, token_bucket)
if line.requests > 0 then
  move_all(line, request_bucket, token_bucket, ARGV[5])
  save_line(line)
end
return 1
