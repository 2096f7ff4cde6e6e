-- A process whose callers wait in the line is alive.
-- KEYS: line. ARGV: its name, topic.
local line = line_of(KEYS[1])
if line.requests > 0 then
  redis.call('HSET', KEYS[1], '#' .. ARGV[1], text(now))
  sweep(line, ARGV[2])
  save_line(line)
end
return 1
