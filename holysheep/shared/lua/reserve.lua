-- Takes a place at a credential's limits, or a turn for one.
-- KEYS: limits, line, gate of the credential, gate of the model.
-- ARGV: requests and tokens per minute, tokens, whether it falls back, patience_s, topic, the
-- caller's id, and of one who waits in the line 'due' if it is his turn, 'early' if he wants to know.
-- Returns {'paused', seconds}: upstream asks to wait longer than the caller can.
-- {'held', seconds}: the gates are closed for the moment, ask again then.
-- {'full', seconds}: no place in time. In these three cases nothing is taken.
-- {'wait', turn, last change, requests, tokens}: he waits in the line, for so much to come into the
-- buckets.
-- {'go', now, pauses of the two gates where they count who passes, or ''}: taken. Without the last
-- two where no gate counts.
local patience, topic = number(ARGV[5]), ARGV[6]
local gates, paused, held = {}, 0, 0
-- Mostly nobody waits and no gate is closed.
local is_calm = redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) == 0
if not is_calm then
  for index = ARGV[4] == '1' and 4 or 3, 4 do
    local gate = gate_of(KEYS[index])
    if gate then
      gates[index] = gate
      paused = math.max(paused, gate.ends - now)
      held = math.max(held, gate_delay(gate))
    end
  end
end
local line = is_calm and empty_line(KEYS[2]) or line_of(KEYS[2])
local somebody_waits = line.requests > 0
sweep(line, topic)
local waiting = ARGV[8] ~= '' and waiting_in(line, ARGV[7])
if paused > patience or held > 0 then
  if waiting then
    -- A crowd that is held back stands in nobody's way.
    quit(line, waiting, topic)
  end
  if somebody_waits then
    save_line(line)
  end
  for _, gate in pairs(gates) do
    save_gate(gate)
  end
  if paused > patience then
    return {'paused', text(paused)}
  end
  return {'held', text(held)}
end
local tokens = number(ARGV[3])
local request_bucket, token_bucket = buckets_of(KEYS[1], number(ARGV[1]), number(ARGV[2]))
move_all(line, request_bucket, token_bucket, topic)
local ahead = line
if waiting then
  ahead = ARGV[8] == 'early' and ahead_of(line, waiting) or {requests = 0, tokens = 0}
end
local requests_missing = missing_for(request_bucket, 1, ahead.requests)
local tokens_missing = missing_for(token_bucket, tokens, ahead.tokens)
local seconds = math.max(seconds_for(request_bucket, requests_missing),
  seconds_for(token_bucket, tokens_missing))
local answer
if waiting and seconds > LINE_EARLY_S then
  answer = {'wait', text(waiting.turn), text(line.turn)}
elseif not waiting and seconds > patience then
  answer = {'full', text(seconds)}
elseif not waiting and seconds > 0 then
  say_all(line, topic)
  join(line, ARGV[7], tokens, patience)
  somebody_waits = true
  answer = {'wait', text(line.turn), text(line.turn)}
else
  take(request_bucket, 1)
  take(token_bucket, tokens)
  if waiting then
    take_out(line, waiting)
  end
end
save_buckets(KEYS[1], request_bucket, token_bucket)
if somebody_waits then
  save_line(line)
end
if answer then
  if answer[1] == 'wait' then
    answer[4], answer[5] = text(requests_missing), text(tokens_missing)
  end
  return answer
end
if is_calm then
  return {'go', text(now)}
end
local passed = {'', ''}
for index, gate in pairs(gates) do
  if gate.allowance > 0 then
    gate.entered[#gate.entered + 1] = text(now)
    passed[index - 2] = text(gate.pauses)
  end
  save_gate(gate)
end
return {'go', text(now), passed[1], passed[2]}
