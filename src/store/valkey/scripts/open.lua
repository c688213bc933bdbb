-- Makes a store where there is none. KEYS: meta. ARGV: format, id for a new store.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'format', ARGV[1], 'id', ARGV[2], 'version', '0', 'epoch', '0', 'place', '0')
end
return redis.call('HMGET', KEYS[1], 'format', 'id')
