-- Holds the lease on. KEYS: meta, lease. ARGV: id of the store, who asks, epoch, time to live in milliseconds; 0 gives it back.
if is_foreign() then return { 'foreign' } end
local stored = redis.call('GET', KEYS[2])
if not stored then return { 'gone' } end
local epoch, who, shown = string.match(stored, '^(%d+)\n([^\n]*)\n(.*)$')
if who ~= ARGV[2] or epoch ~= ARGV[3] then return { 'held', shown } end
if ARGV[4] == '0' then
  redis.call('DEL', KEYS[2])
else
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return { 'leads', epoch }
