-- What all processes have spent on a day, at most.
-- KEYS: what was spent and claimed, by process.
local _, claimed = sums_of(KEYS[1], nil)
return text(claimed)
