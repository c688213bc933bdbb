-- What every script of the store shares. A record is kept as lines: version, uid, agent state, task state, cleaned up ('yes' or 'no'),
-- metadata and spec as JSON, status as JSON. Lines never hold line breaks themselves.
-- KEYS of every writing script: meta, records of the kind, changes, events, agent states, task states.
-- ARGV of every writing script: id of the store, how many changes are kept, kind, field of the record.

local meta

local function is_foreign()
  meta = redis.call('HMGET', KEYS[1], 'id', 'version')
  return meta[1] ~= ARGV[1]
end

-- The ends of lines are looked for as plain text: a pattern looks at every character, and a record has thousands.
local function parse(value)
  local line, at = {}, 1
  for i = 1, 6 do
    local ends = string.find(value, '\n', at, true)
    -- Damaged: it has no version that anybody could expect.
    if not ends then return {} end
    line[i], at = string.sub(value, at, ends - 1), ends + 1
  end
  return { version = line[1], uid = line[2], state = line[3], task = line[4], cleaned = line[5], head = line[6], status = string.sub(value, at) }
end

local function value_of(r)
  return table.concat({ r.version, r.uid, r.state, r.task, r.cleaned, r.head, r.status }, '\n')
end

-- Gives a record the next version and tells the change; `is_foreign` was asked before. The change goes first: it is what the server may refuse, and then nothing was written.
local function tell(change, record)
  local version = string.format('%.0f', tonumber(meta[2]) + 1)
  record.version = version
  local value = value_of(record)
  redis.call('XADD', KEYS[3], 'MAXLEN', '=', ARGV[2], version .. '-0', 'i', ARGV[1], 'c', change, 'k', ARGV[3], 'v', value)
  redis.call('HSET', KEYS[1], 'version', version)
  return value
end
