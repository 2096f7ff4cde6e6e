-- Takes a place at a credential's limits, or a time for one.
-- KEYS: limits, gate of the credential, gate of the model.
-- ARGV: requests and tokens per minute, tokens, whether it falls back, patience_s, whether its
-- place in the buckets is taken already.
-- Returns {'paused', seconds}: upstream asks to wait longer than the caller can.
-- {'held', seconds}: the gates are closed for the moment, ask again then; nothing is taken.
-- {'full', seconds}: no place in time, nothing is taken.
-- {'wait', seconds for requests, for tokens, and what was given back of each}: taken, for then.
-- {'go', now, pauses of the two gates where they count who passes, or ''}: taken.
local patience = number(ARGV[5])
local gates, paused, held = {}, 0, 0
for index = ARGV[4] == '1' and 3 or 2, 3 do
  local gate = gate_of(KEYS[index])
  if gate then
    gates[index] = gate
    paused = math.max(paused, gate.ends - now)
    held = math.max(held, gate_delay(gate))
  end
end
local has_place = ARGV[6] == '1'
local tokens = number(ARGV[3])
local buckets = buckets_of(KEYS[1], number(ARGV[1]), number(ARGV[2]))
if paused > patience or held > 0 then
  if has_place then
    put_back(buckets.requests, 1, false)
    put_back(buckets.tokens, tokens, false)
    save_buckets(KEYS[1], buckets)
  end
  for _, gate in pairs(gates) do
    save_gate(gate)
  end
  if paused > patience then
    return {'paused', text(paused)}
  end
  return {'held', text(held)}
end
if not has_place then
  local for_requests = wait_for(buckets.requests, 1)
  local for_tokens = wait_for(buckets.tokens, tokens)
  local seconds = math.max(for_requests, for_tokens)
  if seconds > patience then
    return {'full', text(seconds)}
  end
  if buckets.requests.rate > 0 then
    buckets.requests.level = buckets.requests.level - 1
  end
  if buckets.tokens.rate > 0 then
    buckets.tokens.level = buckets.tokens.level - tokens
  end
  save_buckets(KEYS[1], buckets)
  if seconds > 0 then
    return {'wait', text(for_requests), text(for_tokens),
      text(buckets.requests.given), text(buckets.tokens.given)}
  end
end
local passed = {'', ''}
for index, gate in pairs(gates) do
  if gate.allowance > 0 then
    gate.entered[#gate.entered + 1] = text(now)
    passed[index - 1] = text(gate.pauses)
  end
  save_gate(gate)
end
return {'go', text(now), passed[1], passed[2]}
