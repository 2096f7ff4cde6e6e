-- What all processes have spent on a day, at most.
-- KEYS: what was spent and claimed, by process.
local claimed = 0
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  if all[index] ~= 'id' then
    local spent, most = string.match(all[index + 1], '(%S+) (%S+)')
    claimed = claimed + math.max(number(spent), number(most))
  end
end
return text(claimed)
