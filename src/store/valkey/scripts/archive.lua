-- Keeps the last state of a record. KEYS: meta, history by uid, order of the history. ARGV: id of the store, how many are kept, uid, record.
if is_foreign() then return { 'foreign' } end
if not redis.call('ZSCORE', KEYS[3], ARGV[3]) then
  redis.call('ZADD', KEYS[3], redis.call('HINCRBY', KEYS[1], 'place', 1), ARGV[3])
end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
while redis.call('ZCARD', KEYS[3]) > tonumber(ARGV[2]) do
  redis.call('HDEL', KEYS[2], redis.call('ZPOPMIN', KEYS[3])[1])
end
return { 'done' }
