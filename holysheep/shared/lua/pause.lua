-- Upstream has answered 429: closes the gates.
-- KEYS: gate of the credential, gate of the model.
-- ARGV: seconds for each, or '' where the server named no time; when the call was let through;
-- topic; the model, as news name it.
local seconds = {}
for index = 1, 2 do
  local gate = gate_of(KEYS[index]) or {
    key = KEYS[index], ends = 0, allowance = 0, entered = {}, pauses = 0, paused_at = 0,
    strikes = 0, has_accepted = false,
  }
  if number(ARGV[3]) > gate.paused_at then
    gate.strikes = math.max(1, gate.strikes + (gate.has_accepted and -1 or 1))
    gate.paused_at = now
    gate.has_accepted = false
  end
  local asked = ARGV[index] ~= '' and number(ARGV[index])
    or math.min(PAUSE_MAX_S, PAUSE_BASE_S * 2 ^ math.min(10, gate.strikes - 1))
  gate.ends = math.max(gate.ends, now + asked)
  gate.allowance = 1
  gate.pauses = gate.pauses + 1
  gate.entered = {}
  save_gate(gate)
  seconds[index] = text(gate.ends - now)
end
news(ARGV[4], 'paused ' .. seconds[1] .. ' ' .. ARGV[5] .. ' ' .. seconds[2])
return seconds
