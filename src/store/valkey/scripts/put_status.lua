-- Replaces the status of the record that has this version, and tells what came of its agent and task.
-- ARGV from 5: expected version, expected uid (empty: any), status, agent state, task state, cleaned up, namespace/task id, how many events
-- are kept, then names and values for the event. Empty states belong to a kind without tasks.
if is_foreign() then return { 'foreign' } end
local stored = redis.call('HGET', KEYS[2], ARGV[4])
if not stored then return { 'missing' } end
local record = parse(stored)
if record.version ~= ARGV[5] or (ARGV[6] ~= '' and record.uid ~= ARGV[6]) then return { 'conflict' } end
if record.status == ARGV[7] then return { 'done', stored } end
local before = { state = record.state, task = record.task, cleaned = record.cleaned }
record.status, record.state, record.task, record.cleaned = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local value = tell('applied', record)
redis.call('HSET', KEYS[2], ARGV[4], value)
local function event(name)
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[12], '*', 'event', name, 'agent', record.uid, 'state', record.state, 'task-state',
    record.task, 'version', record.version, unpack(ARGV, 13))
end
if record.state ~= before.state then
  redis.call('HSET', KEYS[5], record.uid, record.state)
  event(record.state == 'spawning' and 'spawned' or record.state)
end
if record.task ~= before.task then
  redis.call('HSET', KEYS[6], ARGV[11], record.task)
end
if record.cleaned ~= before.cleaned and record.cleaned == 'yes' then
  event('cleaned up')
end
return { 'done', value }
