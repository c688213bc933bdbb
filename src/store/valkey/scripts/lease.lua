-- Takes, holds on or gives back the lease, or wishes to have it. One script, so that a server that lets one take it knows how to renew it: a slow
-- server must not be asked twice. KEYS: meta, lease, wish. ARGV: id of the store, what to do, who asks, time to live in milliseconds; to acquire
-- and to wish: who that is for people; to acquire: the epoch that the new one must exceed; else: the epoch. The lease is kept as lines: epoch,
-- who, who for people; the wish as the latter two.
if is_foreign() then return { 'foreign' } end
local stored = redis.call('GET', KEYS[2])
local epoch, who, shown
if stored then
  epoch, who, shown = string.match(stored, '^(%d+)\n([^\n]*)\n(.*)$')
end
local wished = redis.call('GET', KEYS[3])
local wisher, wisher_shown
if wished then
  wisher, wisher_shown = string.match(wished, '^([^\n]*)\n(.*)$')
end
local is_wished = wished and wisher ~= ARGV[3]
if ARGV[2] == 'wish' then
  if stored and who ~= ARGV[3] and not is_wished then
    redis.call('SET', KEYS[3], table.concat({ ARGV[3], ARGV[5] }, '\n'), 'PX', ARGV[4])
  end
  return { 'wished' }
end
if stored and (who ~= ARGV[3] or (ARGV[2] ~= 'acquire' and epoch ~= ARGV[5])) then return { 'held', shown } end
if ARGV[2] == 'acquire' and not stored then
  if is_wished then return { 'held', wisher_shown } end
  local last = math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0'), tonumber(ARGV[6]))
  epoch = string.format('%.0f', last + 1)
  redis.call('HSET', KEYS[1], 'epoch', epoch)
  redis.call('SET', KEYS[2], table.concat({ epoch, ARGV[3], ARGV[5] }, '\n'), 'PX', ARGV[4])
  redis.call('DEL', KEYS[3])
elseif not stored then
  return { 'gone' }
elseif ARGV[2] == 'release' then
  redis.call('DEL', KEYS[2])
else
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
if is_wished then return { 'leads', epoch, wisher_shown } end
return { 'leads', epoch }
