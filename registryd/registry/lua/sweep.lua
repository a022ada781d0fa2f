-- Lets go of what is due: ended leases, ended drains, ended maintenance. Exactly once, whoever calls.
--
-- The guard: when many leases end at once (due >= max(min, fraction of all)) the fault is more likely
-- between us and the clients than in all of them. Each such instance is held once, for min(its ttl,
-- max hold), shown as suspect; then expiry goes on. While any is held, others that become due are
-- held likewise, once each.
--
-- ARGV 7 at most so many a call   8 guard min (0 = off)   9 guard fraction   10 guard max hold ms
--      11 "force": let go of the held at once, hold nobody
-- Returns {state, due left, jump ms, instances, leases, epoch, rev, held, derived errors, repair ("1" when
--   derived data has to be written again), removed ids…};
--   state is ok or preserving; instances ~= leases means that the store lost data
local limit, min_due, fraction, max_hold = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local force = ARGV[11] == 'force'
commit_clock()
local removed = {}

-- Whether messages have to be sent that nobody here has asked for; see heard().
local relayed = '1'
if ARGV[2] == '' then
  local info = pcall_('INFO', 'replication')
  if type(info) == 'string' and string.find(info, 'connected_slaves:0', 1, true) then relayed = '0' end
end
if relayed ~= (meta[6] or '0') then call('HSET', META, 'relayed', relayed) end

for _, id in ipairs(call('ZRANGEBYSCORE', UNTIL, '-inf', int(now), 'LIMIT', 0, limit)) do
  local row, admin = get_row(id), admin_of(id)
  if row and state_of(admin) == 'maintenance' then
    local before, doc = index_terms(row, admin), call('HGET', DOCS, id) or '{}'
    local deadline = tonumber(call('ZSCORE', LEASES, id))
    local suspect = is_suspect(id)
    row.since, row.updated = timestamp(), timestamp()
    emit({kind = 'service:health:changed', id = id, row = row, doc = doc, admin = '', suspect = suspect,
      reason = 'maintenance ended', old = 'maintenance', new = row.health})
    remember_transition(id, 'maintenance', row.health, 'maintenance ended')
    put_row(id, row)
    reindex(id, before, index_terms(row, ''))
    project(id, row, doc, '', suspect, deadline)
  end
  call('HDEL', ADMIN, id)
  call('ZREM', UNTIL, id)
end

-- Drains, and instances that the guard has held once, have had their decision.
local cutoff = '(' .. int(L)
local due = call('ZCOUNT', LEASES, '-inf', cutoff)
local undecided = due - call('ZCOUNT', HELD, '-inf', cutoff) - call('ZCOUNT', DRAINS, '-inf', cutoff)
local leases = call('ZCARD', LEASES)
local holding = not force and min_due > 0 and undecided > 0
if guard ~= 0 then holding = holding and L < guard + max_hold
else holding = holding and undecided >= min_due and undecided >= fraction * leases end

local held_now, goers = {}, {}
if holding then
  for _, id in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', cutoff, 'LIMIT', 0, limit)) do
    if call('HEXISTS', INST, id) == 0 then goers[#goers + 1] = id
    elseif not is_suspect(id) and not call('ZSCORE', DRAINS, id) then held_now[#held_now + 1] = id end
  end
end
if #held_now > 0 then
  local rev = emit({kind = 'registry:preserving', ids = cjson.encode(held_now),
    reason = int(undecided) .. ' of ' .. int(leases) .. ' leases ended together'})
  if guard == 0 then
    guard = L
    call('HSET', META, 'guard', int(L))
  end
  for _, id in ipairs(held_now) do
    local row = get_row(id)
    local deadline = L + math.min(row.ttl, max_hold)
    row.epoch, row.rev = epoch, tonumber(rev)
    put_row(id, row)
    call('ZADD', LEASES, int(deadline), id)
    call('ZADD', HELD, int(deadline), id)
    project(id, row, call('HGET', DOCS, id) or '{}', admin_of(id), true, deadline)
  end
end

-- What was just held is no longer due; what is due now goes.
if holding then
  for _, set in ipairs({HELD, DRAINS}) do
    for _, id in ipairs(call('ZRANGEBYSCORE', set, '-inf', cutoff, 'LIMIT', 0, limit - #goers)) do
      goers[#goers + 1] = id
    end
  end
else goers = call('ZRANGEBYSCORE', LEASES, '-inf', cutoff, 'LIMIT', 0, limit) end
if force and #goers < limit then
  for _, id in ipairs(call('ZRANGE', HELD, 0, limit - #goers - 1)) do goers[#goers + 1] = id end
end
for _, id in ipairs(goers) do
  local row = get_row(id)
  if row then
    end_lease(id, row)
    removed[#removed + 1] = id
  else
    for _, set in ipairs({LEASES, HELD, DRAINS}) do call('ZREM', set, id) end
  end
end

local held = call('ZCARD', HELD)
if guard ~= 0 and held == 0 then
  guard = 0
  emit({kind = 'registry:preserving', ids = '[]', reason = 'over'})
  call('HDEL', META, 'guard')
end
local counters = call('HMGET', META, 'epoch', 'rev', 'derived_errors', 'repair')
local out = {guard ~= 0 and 'preserving' or 'ok', call('ZCOUNT', LEASES, '-inf', cutoff), int(jump),
  call('HLEN', INST), call('ZCARD', LEASES), counters[1] or '0', counters[2] or '0', held, counters[3] or '0', counters[4] or ''}
for _, id in ipairs(removed) do out[#out + 1] = id end
return finish(out)
