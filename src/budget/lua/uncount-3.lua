--[[
  Takes a submit that came to nothing out of the windows of runs. Money does not depend on it.

  KEYS[1] keys    hash: key fingerprint -> run id, for as long as its hold is open
  KEYS[2] runs    zset: key fingerprint -> admitted at, in ms
  KEYS[3] runs of the API key and its like, the same
  ARGV[1] key fingerprint
  Reply   {"done"} | {"held"}        a copy of the submit holds since: nothing is changed
  Again   A second call changes nothing.
]]
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  return {'held'}
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return {'done'}
