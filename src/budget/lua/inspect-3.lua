--[[
  Shows a tenant's budget as it is. Changes nothing.

  KEYS[1] budget   KEYS[2] holds   KEYS[3] admits   (as in reserve-6.lua)
  Reply   {epoch or "", server or "", available or "", month or "", base or "", now in ms of Redis' clock,
           holds as run id, micros, ..., admits as run id, text, ...}
]]
local budget = redis.call('HMGET', KEYS[1], 'epoch', 'server', 'available', 'month', 'base')
local time = redis.call('TIME')
local now_ms = time[1] .. string.sub(string.format('%06d', time[2]), 1, 3)
return {
  budget[1] or '', budget[2] or '', budget[3] or '', budget[4] or '', budget[5] or '', now_ms,
  redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]),
}
