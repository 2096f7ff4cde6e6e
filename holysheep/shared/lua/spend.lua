-- Says what a process has spent of a budget today, and claims what it may spend beyond that.
-- KEYS: what was spent and claimed today, by process.
-- ARGV: process, spent, in use, needed, wanted, daily limit or '', what the month's limit leaves
-- for today or '', seconds to keep it. Amounts in USD; the last three of the process are sums
-- since the day began, and `in use` is spent plus what is held for calls under way.
-- Returns {claimed, spent by others, claimed by others, id of this record}.
local spent, claimed, id = sums_of(KEYS[1], ARGV[1])
if not id then
  -- A new day, or all was lost: whoever knows more may say so.
  id = text(now)
  redis.call('HSET', KEYS[1], 'id', id)
end
local claim = number(ARGV[5])
for index = 6, 7 do
  if ARGV[index] ~= '' then
    claim = math.min(claim, number(ARGV[index]) - claimed)
  end
end
-- Amounts have twelve places, and sums of them here a little more.
if claim < number(ARGV[4]) - 5e-13 then
  claim = number(ARGV[3])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.12f', claim))
expire(KEYS[1], number(ARGV[8]))
return {text(claim), text(spent), text(claimed), id}
