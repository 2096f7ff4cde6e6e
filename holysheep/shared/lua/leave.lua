-- A call that has passed gates was accepted, or has ended without telling.
-- KEYS: gate of the credential, gate of the model.
-- ARGV: pauses of the two or '', when it passed, whether it was accepted, topic.
for index = 1, 2 do
  if ARGV[index] ~= '' then
    local gate = gate_of(KEYS[index])
    if gate then
      leave_gate(gate, number(ARGV[index]), ARGV[3], ARGV[4] == '1')
      save_gate(gate)
    end
  end
end
news(ARGV[5], 'opened')
return 1
