-- What processes have spent and claimed of a budget on a day; stands before the scripts that add it
-- up. Each has a field of its own, "spent claimed", and `id` names the whole.

local function sums_of(key, but)
  local spent, claimed, id = 0, 0, nil
  local all = redis.call('HGETALL', key)
  for index = 1, #all, 2 do
    if all[index] == 'id' then
      id = all[index + 1]
    elseif all[index] ~= but then
      local theirs, most = string.match(all[index + 1], '(%S+) (%S+)')
      spent = spent + number(theirs)
      claimed = claimed + math.max(number(theirs), number(most))
    end
  end
  return spent, claimed, id
end
