-- The buckets and gates of a credential; stands before the scripts of the limiter.
--
-- A bucket's level is what may be taken now. It is negative where places were given out ahead:
-- each caller then has a time of its own, in the order in which they asked. `given` sums up what
-- was given back by calls that are through: all who wait are due so much earlier. `spare` is what
-- was given back of places in the line that nobody used: no more than a bucket could have kept.

local function refill(level, rate, seconds)
  return math.min(rate, level + math.max(0, seconds) * rate / 60)
end

local function buckets_of(key, request_rate, token_rate)
  local stored = redis.call('HMGET', key, 'at', 'requests', 'request_rate', 'requests_given',
    'tokens', 'token_rate', 'tokens_given', 'requests_spare', 'tokens_spare')
  local seconds = now - number(stored[1], now)
  local function bucket(rate, level, old_rate, given, spare)
    old_rate = number(old_rate, rate)
    -- No limit leaves a bucket alone: what was taken from it stays taken.
    level = refill(number(level, old_rate), old_rate, seconds)
    if rate > 0 then
      level, old_rate = level + rate - old_rate, rate
    end
    return {rate = rate, kept_rate = old_rate, level = level, given = number(given, 0),
      spare = level < 0 and number(spare, 0) or 0}
  end
  return {
    requests = bucket(request_rate, stored[2], stored[3], stored[4], stored[8]),
    tokens = bucket(token_rate, stored[5], stored[6], stored[7], stored[9]),
  }
end

local function save_buckets(key, buckets)
  local requests, tokens = buckets.requests, buckets.tokens
  redis.call('HSET', key, 'at', text(now),
    'requests', text(requests.level), 'request_rate', text(requests.kept_rate),
    'requests_given', text(requests.given),
    'tokens', text(tokens.level), 'token_rate', text(tokens.kept_rate),
    'tokens_given', text(tokens.given),
    'requests_spare', text(requests.spare), 'tokens_spare', text(tokens.spare))
  -- When it is full again there is nothing to remember.
  local seconds = 60
  for _, bucket in pairs(buckets) do
    if bucket.kept_rate > 0 then
      seconds = math.max(seconds, (bucket.kept_rate - bucket.level) * 60 / bucket.kept_rate)
    end
  end
  expire(key, seconds + 60)
end

local function wait_for(bucket, amount)
  if bucket.rate <= 0 then
    return 0
  end
  -- A call larger than the bucket goes when the bucket is full, rather than never.
  local missing = math.min(amount, bucket.rate) - bucket.level
  if missing <= 1e-9 then
    return 0
  end
  return missing * 60 / bucket.rate
end

local function put_back(bucket, amount, is_through)
  if bucket.rate > 0 then
    if not is_through and bucket.level < 0 then
      -- The one that is due next is among what a bucket would hold.
      amount = math.min(amount, math.max(0, bucket.rate - 1 - bucket.spare))
      bucket.spare = bucket.spare + amount
    end
    bucket.level = math.min(bucket.rate, bucket.level + amount)
    if is_through then
      bucket.given = bucket.given + amount
    end
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
