-- Takes the lease if nobody has it. KEYS: meta, lease. ARGV: id of the store, who asks, who that is for people, time to live in
-- milliseconds, epoch that the new one must exceed. The lease is kept as lines: epoch, who, who for people.
if is_foreign() then return { 'foreign' } end
local stored = redis.call('GET', KEYS[2])
if stored then
  local epoch, who, shown = string.match(stored, '^(%d+)\n([^\n]*)\n(.*)$')
  if who ~= ARGV[2] then return { 'held', shown } end
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  return { 'leads', epoch }
end
local last = math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0'), tonumber(ARGV[5]))
local epoch = string.format('%.0f', last + 1)
redis.call('HSET', KEYS[1], 'epoch', epoch)
redis.call('SET', KEYS[2], table.concat({ epoch, ARGV[2], ARGV[3] }, '\n'), 'PX', ARGV[4])
return { 'leads', epoch }
