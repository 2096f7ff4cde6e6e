-- What other processes have spent, told by one that knows: only where they have not said so.
-- KEYS: what was spent and claimed today, by process. ARGV: seconds to keep it; then for each
-- process its name, and what it has spent and claimed.
for index = 2, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], ARGV[index], ARGV[index + 1])
end
expire(KEYS[1], number(ARGV[1]))
return 1
