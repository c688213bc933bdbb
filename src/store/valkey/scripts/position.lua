-- How far the store is. KEYS: meta, changes. Each change has an entry, so that the oldest that is kept follows from their number.
meta = redis.call('HMGET', KEYS[1], 'id', 'version')
return { meta[1] or '', meta[2] or '0', tostring(redis.call('XLEN', KEYS[2])) }
