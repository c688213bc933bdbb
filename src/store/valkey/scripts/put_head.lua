-- Replaces metadata and spec of the record that has this version. ARGV from 5: expected version, metadata and spec.
if is_foreign() then return { 'foreign' } end
local stored = redis.call('HGET', KEYS[2], ARGV[4])
if not stored then return { 'missing' } end
local record = parse(stored)
if record.version ~= ARGV[5] then return { 'conflict' } end
record.head = ARGV[6]
local value = tell('applied', record)
redis.call('HSET', KEYS[2], ARGV[4], value)
return { 'done', value }
