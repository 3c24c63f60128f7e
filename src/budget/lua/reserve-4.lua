--[[
  Admits a submit: sets an amount of a tenant's budget aside for one run, or says why not.

  KEYS[1] budget  hash: epoch, server, available (micros)
  KEYS[2] holds   hash: run id -> micros held
  KEYS[3] admits  hash: run id -> "<key fingerprint> <payload hash> <admitted at, ms of Redis' clock>"
  KEYS[4] keys    hash: key fingerprint -> run id, for as long as its hold is open
  ARGV[1] the server's run id as the caller's connection knows it
  ARGV[2] run id to use if the key is new       ARGV[3] micros to hold
  ARGV[4] the same, negated                     ARGV[5] key fingerprint
  ARGV[6] payload hash
  Reply   {"held", epoch, run id}    the hold is made
          {"again", epoch, run id}   this key's hold is open already, for the same payload
          {"mismatch"}               this key's hold is open already, for another payload
          {"short", available}       the budget does not cover it; nothing changed
          {"unknown"}                Redis does not know this budget, or knew it in another life
  Again   A second call with the same key changes nothing and replies "again".

  Amounts are compared as numbers (they are below 2^53) and change only by HINCRBY with texts.
]]
local budget = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'available')
if not budget[1] or budget[2] ~= ARGV[1] then
  return {'unknown'}
end
local prior = redis.call('HGET', KEYS[4], ARGV[5])
if prior then
  local admit = redis.call('HGET', KEYS[3], prior)
  if admit and string.find(admit, ARGV[5] .. ' ' .. ARGV[6] .. ' ', 1, true) == 1 then
    return {'again', budget[1], prior}
  end
  return {'mismatch'}
end
if tonumber(budget[3]) < tonumber(ARGV[3]) then
  return {'short', budget[3]}
end
local time = redis.call('TIME')
local now_ms = time[1] .. string.sub(string.format('%06d', time[2]), 1, 3)
redis.call('HINCRBY', KEYS[1], 'available', ARGV[4])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. now_ms)
redis.call('HSET', KEYS[4], ARGV[5], ARGV[2])
return {'held', budget[1], ARGV[2]}
