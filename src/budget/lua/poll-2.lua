--[[
  Counts a request, or says that it is one too many. Money does not depend on it.

  KEYS[1] polls   zset, expires with its window: time in µs, as a name -> time in ms
  KEYS[2] polls of the API key and its like, the same
  ARGV[1] requests in any window (KEYS[1]), 0 for no limit      ARGV[2] the same of the API key (KEYS[2])
  ARGV[3] a window's length in ms
  Reply   {"taken", left, ms until more, left of the key's, ms until more}
          {"limited", ms until more} | {"key-limited", ms until more}     nothing is counted
  Again   A second call counts a second time.
]]
local time = redis.call('TIME')
local now_ms = time[1] .. string.sub(string.format('%06d', time[2]), 1, 3)
local figures = {'', '', '', ''}
local windows = {}
for at = 1, 2 do
  local limit = tonumber(ARGV[at])
  if limit > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[at], '-inf', tonumber(now_ms) - tonumber(ARGV[3]))
    redis.call('ZREMRANGEBYSCORE', KEYS[at], '(' .. now_ms, '+inf')  -- the clock went back
    local count = redis.call('ZCARD', KEYS[at])
    local first = redis.call('ZRANGE', KEYS[at], 0, 0, 'WITHSCORES')[2]
    local more_ms = (first or now_ms) + ARGV[3] - now_ms
    if count >= limit then
      return {at == 1 and 'limited' or 'key-limited', more_ms}
    end
    windows[at] = true
    figures[2 * at - 1] = limit - count - 1
    figures[2 * at] = more_ms
  end
end
for at in pairs(windows) do
  local name = time[1] .. '.' .. time[2]
  while redis.call('ZADD', KEYS[at], now_ms, name) == 0 do
    name = name .. '+'
  end
  redis.call('PEXPIRE', KEYS[at], ARGV[3])
end
return {'taken', unpack(figures)}
