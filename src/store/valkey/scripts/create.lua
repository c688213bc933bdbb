-- Creates a record. ARGV from 5: uid, metadata and spec, namespace/task id (empty for kinds without tasks).
if is_foreign() then return { 'foreign' } end
if redis.call('HEXISTS', KEYS[2], ARGV[4]) == 1 then return { 'exists' } end
local pending = ARGV[7] ~= '' and 'pending' or ''
local record = { uid = ARGV[5], state = pending, task = pending, cleaned = 'no', head = ARGV[6], status = 'null' }
local value = tell('applied', record)
redis.call('HSET', KEYS[2], ARGV[4], value)
if pending ~= '' then
  redis.call('HSET', KEYS[5], ARGV[5], pending)
  redis.call('HSET', KEYS[6], ARGV[7], pending)
end
return { 'done', value }
