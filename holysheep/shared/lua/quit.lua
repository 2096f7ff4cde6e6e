-- A caller who may wait in the line waits no more.
-- KEYS: line. ARGV: his id, topic.
local line = line_of(KEYS[1])
local waiting = waiting_in(line, ARGV[1])
if waiting then
  quit(line, waiting, ARGV[2])
  save_line(line)
end
return 1
