-- Removes the record that has this version. ARGV from 5: expected version, last metadata and spec, namespace/task id.
if is_foreign() then return { 'foreign' } end
local stored = redis.call('HGET', KEYS[2], ARGV[4])
if not stored then return { 'missing' } end
local record = parse(stored)
if record.version ~= ARGV[5] then return { 'conflict' } end
record.head = ARGV[6]
local value = tell('deleted', record)
redis.call('HDEL', KEYS[2], ARGV[4])
if ARGV[7] ~= '' then
  redis.call('HDEL', KEYS[5], record.uid)
  redis.call('HDEL', KEYS[6], ARGV[7])
end
return { 'done', value }
