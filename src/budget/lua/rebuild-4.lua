--[[
  Sets a tenant's budget to what the ledger says, whole and at once. Never adds to what was there.

  KEYS    as the first four in reserve-6.lua
  ARGV[1] epoch       ARGV[2] the server's run id as the caller's connection knows it
  ARGV[3] available micros      ARGV[4] which month it is      ARGV[5] that month's base, in micros
  ARGV[6..] four for each open hold: run id, micros, key fingerprint, payload hash
  Reply   {"set"} | {"older", epoch that is there}
  Again   A second call sets the same. A call with an epoch below the one that is there (it was
          delayed, and a younger rebuild came before it) changes nothing and replies "older".
]]
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and tonumber(epoch) > tonumber(ARGV[1]) then
  return {'older', epoch}
end
local time = redis.call('TIME')
local now_ms = time[1] .. string.sub(string.format('%06d', time[2]), 1, 3)
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'server', ARGV[2], 'available', ARGV[3],
  'month', ARGV[4], 'base', ARGV[5])
for at = 6, #ARGV, 4 do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 2] .. ' ' .. ARGV[at + 3] .. ' ' .. now_ms)
  redis.call('HSET', KEYS[4], ARGV[at + 2], ARGV[at])
end
return {'set'}
