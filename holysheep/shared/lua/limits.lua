-- The buckets, the line and the gates of a credential; stands before the scripts of the limiter.

-- A bucket's level is what is in it. It is negative after a call that was larger than the bucket,
-- or that used more than it had said.

local function buckets_of(key, request_rate, token_rate)
  local stored = redis.call('HMGET', key, 'at', 'requests', 'request_rate', 'tokens', 'token_rate')
  local seconds = math.max(0, now - number(stored[1], now))
  local function bucket(rate, level, old_rate)
    local stored_rate = number(old_rate)
    old_rate = stored_rate or rate
    local grown = number(level, old_rate) + seconds * old_rate / 60
    level = math.min(old_rate, grown)
    -- No limit leaves a bucket alone: what was taken from it stays taken.
    if rate > 0 then
      level, old_rate = level + rate - old_rate, rate
    end
    -- `moved` is what those who wait did not foresee: a bucket that was full, or has another size.
    return {rate = rate, kept_rate = old_rate, level = level, moved = level - grown,
      is_resized = old_rate ~= stored_rate}
  end
  return bucket(request_rate, stored[2], stored[3]), bucket(token_rate, stored[4], stored[5])
end

local function save_buckets(key, requests, tokens)
  local fields = {'at', text(now)}
  -- When it is full again there is nothing to remember.
  local seconds = 60
  local function add(name, rate_name, bucket)
    if bucket.kept_rate > 0 then
      fields[#fields + 1] = name
      fields[#fields + 1] = text(bucket.level)
      if bucket.is_resized then
        fields[#fields + 1] = rate_name
        fields[#fields + 1] = text(bucket.kept_rate)
      end
      seconds = math.max(seconds, (bucket.kept_rate - bucket.level) * 60 / bucket.kept_rate)
    end
  end
  add('requests', 'request_rate', requests)
  add('tokens', 'token_rate', tokens)
  if #fields > 2 then
    redis.call('HSET', key, unpack(fields))
    expire(key, seconds + 60)
  end
end

local function take(bucket, amount)
  if bucket.rate > 0 then
    bucket.level = bucket.level - amount
  end
end

-- What is missing until `amount` can be taken, after `before` was; negative where there is more.
local function missing_for(bucket, amount, before)
  -- A call larger than the bucket goes when the bucket is full, rather than never.
  return math.min(amount, bucket.rate) + before - bucket.level
end

local function seconds_for(bucket, missing)
  return bucket.rate > 0 and missing > 1e-9 and missing * 60 / bucket.rate or 0
end

-- The line: those who wait, each with what he will take and the number of his turn. `requests` and
-- `tokens` are their sums. Changes are numbered like turns: what is said under a number concerns
-- those who had their turn before. `unsaid` is what they have not been told yet. A field '@ID' is a
-- caller, '#NAME' when his process was last heard of; an id begins with the name.

local function empty_line(key)
  -- A line that was forgotten must not count from the beginning: its numbers may still be known.
  return {key = key, turn = math.floor(now * 1000000), requests = 0, tokens = 0, ends = 0,
    swept = 0, unsaid_requests = 0, unsaid_tokens = 0}
end

local function line_of(key)
  local line = empty_line(key)
  local names = {'turn', 'requests', 'tokens', 'ends', 'swept', 'unsaid_requests', 'unsaid_tokens'}
  for index, stored in ipairs(redis.call('HMGET', key, unpack(names))) do
    line[names[index]] = number(stored, line[names[index]])
  end
  return line
end

local function save_line(line)
  redis.call('HSET', line.key, 'turn', text(line.turn), 'requests', text(line.requests),
    'tokens', text(line.tokens), 'ends', text(line.ends), 'swept', text(line.swept),
    'unsaid_requests', text(line.unsaid_requests), 'unsaid_tokens', text(line.unsaid_tokens))
  expire(line.key, math.max(0, line.ends - now) + 60)
end

-- The turn and the tokens of one who waits, if he does, and when he will not any more.
local function waiting_in(line, id)
  local stored = line.requests > 0 and redis.call('HGET', line.key, '@' .. id)
  if stored then
    local turn, tokens, ends = string.match(stored, '(%S+) (%S+) (%S+)')
    return {id = id, turn = number(turn), tokens = number(tokens), ends = number(ends)}
  end
  return nil
end

local function process_of(id)
  return string.sub(id, 1, 16)
end

local function join(line, id, tokens, patience)
  line.turn = line.turn + 1
  line.requests, line.tokens = line.requests + 1, line.tokens + tokens
  local ends = now + patience + 10
  line.ends = math.max(line.ends, ends)
  redis.call('HSET', line.key, '#' .. process_of(id), text(now), '@' .. id,
    text(line.turn) .. ' ' .. text(tokens) .. ' ' .. text(ends))
end

local function take_out(line, waiting)
  redis.call('HDEL', line.key, '@' .. waiting.id)
  line.requests, line.tokens = line.requests - 1, line.tokens - waiting.tokens
  if line.requests <= 0 then
    line.requests, line.tokens = 0, 0
    line.unsaid_requests, line.unsaid_tokens = 0, 0
  end
end

-- Those whose turn comes after `turn` are so much nearer to it.
local function move_up(line, turn, requests, tokens, topic)
  if line.requests > 0 and (requests ~= 0 or tokens ~= 0) then
    line.turn = line.turn + 1
    news(topic, table.concat(
      {'moved', text(line.turn), text(turn), text(requests), text(tokens)}, ' '))
  end
end

-- Tells those who wait what came or went without their knowing.
local function say_all(line, topic)
  move_up(line, 0, line.unsaid_requests, line.unsaid_tokens, topic)
  line.unsaid_requests, line.unsaid_tokens = 0, 0
end

local function move_all(line, request_bucket, token_bucket, topic)
  line.unsaid_requests = line.unsaid_requests + request_bucket.moved
  line.unsaid_tokens = line.unsaid_tokens + token_bucket.moved
  -- Where there is enough for all who wait, and they do not foresee less, it can wait.
  if math.min(request_bucket.level, request_bucket.level - line.unsaid_requests) < line.requests
    or math.min(token_bucket.level, token_bucket.level - line.unsaid_tokens) < line.tokens then
    say_all(line, topic)
  elseif line.requests == 0 then
    line.unsaid_requests, line.unsaid_tokens = 0, 0
  end
end

local function quit(line, waiting, topic)
  take_out(line, waiting)
  move_up(line, waiting.turn, 1, waiting.tokens, topic)
end

-- What those will take whose turn comes before.
local function ahead_of(line, waiting)
  local ahead = {requests = 0, tokens = 0}
  local stored = redis.call('HGETALL', line.key)
  for index = 1, #stored, 2 do
    if string.sub(stored[index], 1, 1) == '@' then
      local turn, tokens = string.match(stored[index + 1], '(%S+) (%S+)')
      if number(turn) < waiting.turn then
        ahead.requests, ahead.tokens = ahead.requests + 1, ahead.tokens + number(tokens)
      end
    end
  end
  return ahead
end

-- Takes out those who have died: their process is silent, or they have waited longer than they had
-- said.
local function sweep(line, topic)
  if line.requests <= 0 or now < line.swept + LINE_SWEEP_S then
    return
  end
  line.swept = now
  local gone, requests, tokens = {}, 0, 0
  local heard = {}
  local function is_dead(id)
    local name = process_of(id)
    heard[name] = heard[name] or number(redis.call('HGET', line.key, '#' .. name), 0)
    return heard[name] + LINE_DEAD_S < now
  end
  for index, field in ipairs(redis.call('HKEYS', line.key)) do
    local waiting = string.sub(field, 1, 1) == '@' and waiting_in(line, string.sub(field, 2))
    if waiting then
      requests, tokens = requests + 1, tokens + waiting.tokens
      if waiting.ends < now or is_dead(waiting.id) then
        gone[#gone + 1] = waiting
      end
    end
  end
  -- Redis may have forgotten the line, or been given a part of it.
  line.requests, line.tokens = requests, tokens
  for _, waiting in ipairs(gone) do
    quit(line, waiting, topic)
  end
end

-- A gate: closed during a pause, then opening step by step. See gate.py; an allowance of 0 = any.

local function gate_of(key)
  local stored = redis.call('HMGET', key, 'ends', 'allowance', 'entered', 'pauses', 'paused_at',
    'strikes', 'has_accepted')
  if not stored[1] then
    return nil
  end
  local entered = {}
  for at in string.gmatch(stored[3], '%S+') do
    entered[#entered + 1] = at
  end
  return {
    key = key, ends = number(stored[1]), allowance = number(stored[2]), entered = entered,
    pauses = number(stored[4]), paused_at = number(stored[5]), strikes = number(stored[6]),
    has_accepted = stored[7] == '1',
  }
end

local function save_gate(gate)
  if gate.allowance == 0 and now >= gate.ends then
    redis.call('DEL', gate.key)
    return
  end
  redis.call('HSET', gate.key, 'ends', text(gate.ends), 'allowance', text(gate.allowance),
    'entered', table.concat(gate.entered, ' '), 'pauses', text(gate.pauses),
    'paused_at', text(gate.paused_at), 'strikes', text(gate.strikes),
    'has_accepted', gate.has_accepted and '1' or '0')
  expire(gate.key, math.max(0, gate.ends - now) + 600)
end

local function open_further(gate)
  if gate.allowance == 0 then
    return
  end
  gate.has_accepted = true
  gate.allowance = gate.allowance * 2
  if gate.allowance > FULLY_OPEN then
    gate.allowance, gate.entered, gate.strikes = 0, {}, 0
  end
end

local function gate_delay(gate)
  if now < gate.ends then
    return gate.ends - now
  end
  while gate.entered[1] and number(gate.entered[1]) + REFUSAL_S <= now do
    table.remove(gate.entered, 1)
    open_further(gate)
  end
  if gate.allowance > 0 and #gate.entered >= gate.allowance then
    return number(gate.entered[1]) + REFUSAL_S - now
  end
  return 0
end

local function leave_gate(gate, pauses, at, accepted)
  if gate.pauses ~= pauses then
    return
  end
  for index, entered in ipairs(gate.entered) do
    if entered == at then
      table.remove(gate.entered, index)
      if accepted then
        open_further(gate)
      end
      return
    end
  end
end
