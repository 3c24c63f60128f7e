--[[
  Admits a submit: sets an amount of a tenant's budget aside for one run, or says why not. All limits are
  judged here, in one step, and a submit that is refused has changed nothing.

  KEYS[1] budget  hash: epoch, server, available (micros), month (of the base), base (micros: what could be
                  spent from the start of that month on, so base - available is what it has cost and holds)
  KEYS[2] holds   hash: run id -> micros held
  KEYS[3] admits  hash: run id -> "<key fingerprint> <payload hash> <admitted at, ms of Redis' clock>"
  KEYS[4] keys    hash: key fingerprint -> run id, for as long as its hold is open
  KEYS[5] runs    zset, expires with its window: key fingerprint -> admitted at, in ms
  KEYS[6] runs of the API key and its like, the same
  ARGV[1] the server's run id as the caller's connection knows it
  ARGV[2] run id to use if the key is new       ARGV[3] micros to hold
  ARGV[4] the same, negated                     ARGV[5] key fingerprint
  ARGV[6] payload hash
  Limits, each 0 for none:
  ARGV[7] new runs in any window (KEYS[5])      ARGV[8] the same of the API key (KEYS[6])
  ARGV[9] a window's length in ms               ARGV[10] open runs
  ARGV[11] micros that a month may cost         ARGV[12] which month it is
  Reply   {"held", epoch, run id, left, ms until more, left of the key's, ms until more}
                                     the hold is made; the figures are those of ARGV[7] and ARGV[8]
          {"again", as above}        this key's hold is open already, for the same payload
          {"mismatch"}               this key's hold is open already, for another payload
          {"limited", ms until more} ARGV[7] is reached      {"key-limited", ms until more}   ARGV[8] is
          {"crowded"}                ARGV[10] is reached
          {"spent", available, base} ARGV[11] does not cover it
          {"short", available}       the budget does not cover it
          {"unknown"}                Redis does not know this budget, or knew it in another life, or in
                                     another month, which ARGV[11] is to be judged in
  Again   A second call with the same key changes nothing and replies "again"; one whose hold is gone by
          then (a rebuild) counts in the windows as the first did, once.

  Amounts are compared as numbers (they are below 2^53), and change only by HINCRBY with texts.
]]
local budget = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'available', 'month', 'base')
if not budget[1] or budget[2] ~= ARGV[1] then
  return {'unknown'}
end
local time = redis.call('TIME')
local now_ms = time[1] .. string.sub(string.format('%06d', time[2]), 1, 3)

-- How many count in a window, without this submit, and when the first of them leaves it.
local function look(window)
  redis.call('ZREMRANGEBYSCORE', window, '-inf', tonumber(now_ms) - tonumber(ARGV[9]))
  redis.call('ZREMRANGEBYSCORE', window, '(' .. now_ms, '+inf')  -- the clock went back
  local count = redis.call('ZCARD', window)
  if redis.call('ZSCORE', window, ARGV[5]) then
    count = count - 1
  end
  local first = redis.call('ZRANGE', window, 0, 0, 'WITHSCORES')[2]
  return count, (first or now_ms) + ARGV[9] - now_ms
end
local figures = {'', '', '', ''}
local windows = {}
for at = 1, 2 do
  local limit = tonumber(ARGV[6 + at])
  if limit > 0 then
    local count, more_ms = look(KEYS[4 + at])
    windows[at] = {limit = limit, count = count, more_ms = more_ms}
  end
end
local function left(taken)
  for at, window in pairs(windows) do
    figures[2 * at - 1] = math.max(window.limit - window.count - taken, 0)
    figures[2 * at] = window.more_ms
  end
  return unpack(figures)
end

local prior = redis.call('HGET', KEYS[4], ARGV[5])
if prior then
  local admit = redis.call('HGET', KEYS[3], prior)
  if admit and string.find(admit, ARGV[5] .. ' ' .. ARGV[6] .. ' ', 1, true) == 1 then
    return {'again', budget[1], prior, left(1)}
  end
  return {'mismatch'}
end
if windows[1] and windows[1].count >= windows[1].limit then
  return {'limited', windows[1].more_ms}
end
if windows[2] and windows[2].count >= windows[2].limit then
  return {'key-limited', windows[2].more_ms}
end
if tonumber(ARGV[10]) > 0 and redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[10]) then
  return {'crowded'}
end
if tonumber(ARGV[11]) > 0 then
  if not budget[4] or tonumber(budget[4]) < tonumber(ARGV[12]) then
    return {'unknown'}
  end
  if budget[5] - budget[3] + ARGV[3] > tonumber(ARGV[11]) then
    return {'spent', budget[3], budget[5]}
  end
end
if tonumber(budget[3]) < tonumber(ARGV[3]) then
  return {'short', budget[3]}
end
redis.call('HINCRBY', KEYS[1], 'available', ARGV[4])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. now_ms)
redis.call('HSET', KEYS[4], ARGV[5], ARGV[2])
for at in pairs(windows) do
  redis.call('ZADD', KEYS[4 + at], now_ms, ARGV[5])
  redis.call('PEXPIRE', KEYS[4 + at], ARGV[9])
end
return {'held', budget[1], ARGV[2], left(1)}
