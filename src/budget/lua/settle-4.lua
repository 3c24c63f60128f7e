--[[
  Follows the ledger: ends a run's hold, keeps what was charged and returns the rest.

  KEYS    as the first four in reserve-6.lua
  ARGV[1] run id      ARGV[2] micros charged, negated ("0" for nothing)
  Reply   {"settled"} | {"gone"}
  Again   A second call finds no hold, changes nothing and replies "gone". So does a call that comes
          after a rebuild: the rebuilt budget holds the charge already.
  Told    Whoever waits for the run is told, also "gone": its end is in the books either way. It is a
          hint, so where the server's rules forbid it (pcall) the settlement stands all the same.
]]
redis.pcall('PUBLISH', 'dpp:ended', ARGV[1])
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held then
  return {'gone'}
end
local admit = redis.call('HGET', KEYS[3], ARGV[1])
if admit then
  local fingerprint = string.match(admit, '^%S+')
  if redis.call('HGET', KEYS[4], fingerprint) == ARGV[1] then
    redis.call('HDEL', KEYS[4], fingerprint)
  end
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'available', held)
redis.call('HINCRBY', KEYS[1], 'available', ARGV[2])
return {'settled'}
