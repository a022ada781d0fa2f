-- Prepended to every script: the lease clock, events, rows, and the writes of derived data.
--
-- KEYS   the core keys of one partition, in the order of storage/keys.py
-- ARGV   1 key prefix   2 tag ("" or "{p}:")   3 now in ms, "0" = the store's clock
--        4 lease clock cap in ms   5 stream length to keep
--        6 nonce of this operation, and behind a "|" who asked for it   7… the script's own
--
-- Order of writes in every script: emit (may be refused, then nothing has changed), core keys, then
-- derived data (index sets, expiring key, messages) under pcall: Redis does not roll back.
local META, LEASES, RENEW, INST, DOCS, ADMIN = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local CHECKS, CHECKSTATE, STREAM, TOMBSTONES = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local HELD, DRAINS, UNTIL = KEYS[11], KEYS[12], KEYS[13]
local SERVICES = ARGV[1] .. ':services:' .. ARGV[2]
local INDEX = ARGV[1] .. ':index:' .. ARGV[2]
local OPS = ARGV[1] .. ':ops:' .. ARGV[2]
local CHANNEL = ARGV[1] .. ':events:'
local CAP, NONCE, BY = tonumber(ARGV[4]), '', ''
-- Which operation is worked on, and for whom.
local function operate(text)
  local bar = string.find(text, '|', 1, true)
  if bar then NONCE, BY = string.sub(text, 1, bar - 1), string.sub(text, bar + 1)
  else NONCE, BY = text, '' end
end
operate(ARGV[6])
local OP_MEMORY_MS = 120000
-- Further fields of the stream's entries: how views are to take them (import.lua).
local MARK = {}
local call, pcall_ = redis.call, redis.pcall

local function int(x) return string.format('%.0f', x) end

-- TIME is read once: it advances inside a script on Redis 7.0.
local now = tonumber(ARGV[3])
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The lease clock: L = now - skew advances at most CAP between two calls and never goes back, so that
-- an outage, a frozen store or a step of its wall clock expires nobody.
local meta = call('HMGET', META, 'last', 'skew', 'epoch', 'rev', 'guard', 'relayed')
local last, skew, epoch = tonumber(meta[1] or now), tonumber(meta[2] or 0), meta[3]
local rev_now, guard = tonumber(meta[4] or 0), tonumber(meta[5] or 0)
local jump = 0
do
  local d = now - last
  if d < 0 then skew = skew + d; jump = d
  elseif d > CAP then skew = skew + (d - CAP); jump = d end
end
local L = now - skew

local function commit_clock()
  if jump ~= 0 then call('HSET', META, 'last', int(now), 'skew', int(skew), 'repair', '1')
  elseif not meta[1] or now - last >= 100 then call('HSET', META, 'last', int(now), 'skew', int(skew)) end
end

-- Now as RFC 3339, made once. Days to civil date: H. Hinnant, "chrono-compatible low-level date algorithms".
local stamp
local function timestamp()
  if stamp then return stamp end
  local floor = math.floor
  local days = floor(now / 86400000)
  local z = days + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
  local mp = floor((5 * doy + 2) / 153)
  local day = doy - floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local rest = now - days * 86400000
  stamp = string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, day,
    floor(rest / 3600000), floor(rest / 60000) % 60, floor(rest / 1000) % 60, rest % 1000)
  return stamp
end

-- Derived data may fail without failing the change; the audit puts it right.
local messages, derived_errors = {}, 0
local function derive(...)
  local reply = pcall_(...)
  if type(reply) == 'table' and reply.err then derived_errors = derived_errors + 1; return nil end
  return reply
end

-- Keys that only some scripts need and that hold nothing the truth rests on: hashes by id.
local function beside(name)
  if ARGV[2] == '' then return ARGV[1] .. ':' .. name end
  return ARGV[1] .. ':' .. name .. ':' .. string.sub(ARGV[2], 1, -2)
end

-- The latest changes of an instance's health, bounded by number and age; written with the messages.
local TRANSITIONS_KEPT, TRANSITIONS_LIFE_MS = 20, 604800000
local transitions = {}
local function remember_transition(id, old, new, reason, error)
  if old == new then return end
  local one = {at = now, old = old, new = new, reason = reason}
  if (error or '') ~= '' then one.error = error end
  transitions[#transitions + 1] = {id, one}
end

local function write_transitions()
  for _, t in ipairs(transitions) do
    local raw, kept = derive('HGET', beside('transitions'), t[1]), {}
    for _, one in ipairs(raw and cjson.decode(raw) or {}) do
      if now - one.at < TRANSITIONS_LIFE_MS then kept[#kept + 1] = one end
    end
    kept[#kept + 1] = t[2]
    while #kept > TRANSITIONS_KEPT do table.remove(kept, 1) end
    derive('HSET', beside('transitions'), t[1], cjson.encode(kept))
  end
end

-- The last line of every script that emits: messages go out after all writes.
local function finish(reply)
  write_transitions()
  for _, m in ipairs(messages) do derive('PUBLISH', m[1], m[2]) end
  if derived_errors > 0 then
    call('HINCRBY', META, 'derived_errors', derived_errors)
    call('HSET', META, 'repair', '1')
  end
  return reply
end

local function split(id)
  local colon = string.find(id, ':', 1, true)
  return string.sub(id, 1, colon - 1), string.sub(id, colon + 1)
end

local function admin_of(id) return call('HGET', ADMIN, id) or '' end

local function state_of(admin)
  if admin == '' then return '' end
  return cjson.decode(admin).state
end

-- What callers see as health.status: an operator's maintenance hides what the instance says.
local function effective(row, admin)
  if state_of(admin) == 'maintenance' then return 'maintenance' end
  return row.health
end

-- The instance as the API shows it: the stored JSON bytes of the client's part, then what we own.
-- The daemon composes the same bytes from the same parts (registry/document.py).
local function document(row, doc, admin, suspect)
  local seconds = math.floor(row.ttl / 1000)
  return table.concat({
    string.sub(doc, 1, -2),
    ',"health":{"status":"', effective(row, admin), '","since":"', row.since, '"', row.extra,
    row.discovered and ',"discovered":' .. row.discovered or '',
    '},"registeredAt":"', row.registered, '","updatedAt":"', row.updated,
    '","incarnation":"', row.inc,
    '","lease":{"ttlSeconds":', int(seconds),
    ',"renewIntervalSeconds":', int(math.max(1, math.floor(seconds / 3))),
    ',"state":"', suspect and 'suspect' or 'live',
    '"},"revision":"', row.epoch, '-', int(row.rev), '"',
    admin ~= '' and ',"admin":' or '', admin, '}'})
end

local function get_row(id)
  local raw = call('HGET', INST, id)
  if not raw then return nil end
  return cjson.decode(raw)
end

-- Opens the history of a store that has none: an epoch is a moment, and above any left in the stream.
local function ensure_epoch()
  if epoch then return end
  local e = now
  local newest = call('XREVRANGE', STREAM, '+', '-', 'COUNT', 1)[1]
  if newest then e = math.max(e, tonumber(string.match(newest[1], '^(%d+)')) + 1) end
  epoch = int(e)
  call('HSET', META, 'epoch', epoch, 'last', int(now), 'skew', int(skew))
end

local deployment
local function cloud_event(kind, at, id, data)
  deployment = deployment or call('HGET', META, 'deployment') or ''
  local subject = ''
  if id ~= '' then local s, i = split(id); subject = '","subject":"' .. s .. '/' .. i end
  return table.concat({
    '{"specversion":"1.0","id":"', epoch, '-', at, '","source":"/registryd/', deployment,
    '","type":"', kind, subject, '","time":"', timestamp(),
    '","datacontenttype":"application/json","data":', data, '}'})
end

-- Splits the claims of an instance, JSON ["name@version", …], by name: the names as they come, and a
-- set of versions for each.
local function claims(text)
  local names, versions = {}, {}
  for _, claim in ipairs(cjson.decode(text)) do
    local name, version = string.match(claim, '^([^@]*)@(.*)$')
    if not versions[name] then
      names[#names + 1] = name
      versions[name] = {}
    end
    table.insert(versions[name], version)
  end
  return names, versions
end

-- What probes found an instance to offer stands beside what it declares, as JSON that the daemon made:
-- row.discovered = {"capabilities":[{"name","version"},…],"models":[…]}, nil for nothing.

-- The discovered capabilities that count: a name that is declared stands as it was declared.
local function undeclared(row)
  local counting = {}
  if not row.discovered then return counting end
  local declared = {}
  for _, t in ipairs(cjson.decode(row.terms)) do declared[t] = true end
  for _, c in ipairs(cjson.decode(row.discovered).capabilities) do
    if not declared['capability:' .. c.name] then counting[#counting + 1] = c end
  end
  return counting
end

-- All that an instance offers, as claims.
local function claimed(row)
  local more, declared = undeclared(row), row.caps or '[]'
  if #more == 0 then return declared end
  local all = cjson.decode(declared)
  for _, c in ipairs(more) do all[#all + 1] = c.name .. '@' .. c.version end
  return cjson.encode(all)
end

-- What stays discovered of an instance that is to have this endpoint and check: what answers elsewhere
-- is something else, and what nobody probes nobody would ever take back.
local function still_discovered(row, endpoint, check)
  if row.endpoint ~= endpoint or check == '' or string.find(check, '"beats"', 1, true) then return nil end
  return row.discovered
end

local function without(list, other)
  local left, known = {}, {}
  for _, v in ipairs(other or {}) do known[v] = true end
  for _, v in ipairs(list or {}) do if not known[v] then left[#left + 1] = v end end
  return left
end

-- What an instance gained and lost: {{"added" | "removed", name, version} | {"changed", name, version,
-- old version}, …}. One version in place of one other is a change of that capability.
local function capability_changes(had, has)
  local out = {}
  if had == has then return out end
  if had == '[]' then
    for n, claim in ipairs(cjson.decode(has)) do out[n] = {'added', string.match(claim, '^([^@]*)@(.*)$')} end
    return out
  end
  local names_before, before = claims(had)
  local names_after, after = claims(has)
  for _, name in ipairs(names_after) do
    local gained, lost = without(after[name], before[name]), without(before[name], after[name])
    if #gained == 1 and #lost == 1 then out[#out + 1] = {'changed', name, gained[1], lost[1]}
    else
      for _, v in ipairs(gained) do out[#out + 1] = {'added', name, v} end
      for _, v in ipairs(lost) do out[#out + 1] = {'removed', name, v} end
    end
  end
  for _, name in ipairs(names_before) do
    if not after[name] then
      for _, v in ipairs(before[name]) do out[#out + 1] = {'removed', name, v} end
    end
  end
  return out
end

-- Whether anybody would get a message; only then is it made. Whom replicas and other nodes of a cluster
-- have for subscribers is not known here, so where there are any (the sweep looks), all is sent.
local subscribed, anybody = {}, nil
local function heard(channel)
  if anybody == nil then
    local patterns = meta[6] == '1' or pcall_('PUBSUB', 'NUMPAT')
    anybody = type(patterns) ~= 'number' or patterns > 0
  end
  if anybody then return true end
  if subscribed[channel] == nil then
    local reply = pcall_('PUBSUB', 'NUMSUB', channel)
    subscribed[channel] = reply.err ~= nil or reply[2] > 0
  end
  return subscribed[channel]
end

-- Appends one change to the stream. A present instance carries everything a view needs (row, doc,
-- admin), so that nobody has to read back. Sets row.epoch and row.rev. Always the first write.
-- The daemon composes the same messages from the entry (events/cloudevent.py).
-- change: kind, id, row, doc, admin, suspect, reason, old, new, ids; had, has: claims before and after,
-- where they may differ (all but kind optional)
-- Returns the rev, the row as JSON, and the instance as it is shown.
local function emit(change)
  ensure_epoch()
  local rev = rev_now + 1
  local row, id = change.row, change.id or ''
  local encoded = ''
  if row then
    row.epoch, row.rev = epoch, rev
    encoded = cjson.encode(row)
  end
  local capabilities = change.has and capability_changes(change.had, change.has) or {}
  call('XADD', STREAM, 'MAXLEN', '~', ARGV[5], epoch .. '-' .. int(rev),
    'type', change.kind, 'id', id, 'row', encoded, 'doc', change.doc or '', 'admin', change.admin or '',
    'suspect', change.suspect and '1' or '', 'reason', change.reason or '', 'old', change.old or '',
    'ids', change.ids or '', 'caps', #capabilities > 0 and cjson.encode(capabilities) or '',
    'ts', int(now), 'by', BY, 'w', NONCE, unpack(MARK))
  call('HSET', META, 'rev', int(rev))
  rev_now = rev
  local channel = CHANNEL .. change.kind
  if change.ids then
    if not heard(channel) then return int(rev) end
    local data = '{"reason":' .. cjson.encode(change.reason) .. ',"instances":' .. change.ids .. '}'
    messages[#messages + 1] = {channel, cloud_event(change.kind, int(rev), id, data)}
    return int(rev)
  end
  local shown = row and document(row, change.doc, change.admin, change.suspect)
  local told = heard(channel)
  for _, c in ipairs(capabilities) do told = told or heard(CHANNEL .. 'capability:' .. c[1]) end
  if not told then return int(rev), encoded, shown end
  local service, instance = split(id)
  local reason, of_health = '', ''
  if (change.reason or '') ~= '' then reason = ',"reason":' .. cjson.encode(change.reason) end
  if change.new then of_health = ',"old":"' .. change.old .. '","new":"' .. change.new .. '"' end
  local data = '{"service":"' .. service .. '","instance":'
  if row then data = data .. shown .. reason
  else data = data .. '{"instanceId":"' .. instance .. '"' .. reason .. '}' end
  messages[#messages + 1] = {channel,
    cloud_event(change.kind, int(rev), id, data .. of_health .. '}')}
  for n, c in ipairs(capabilities) do
    local kind = 'capability:' .. c[1]
    local capability = ',"capability":{"name":"' .. c[2] .. '","version":"' .. c[3]
      .. (c[4] and '","oldVersion":"' .. c[4] or '') .. '"}}'
    messages[#messages + 1] = {CHANNEL .. kind, cloud_event(kind, int(rev) .. '.' .. n, id, data .. capability)}
  end
  return int(rev), encoded, shown
end

local function put_row(id, row) call('HSET', INST, id, cjson.encode(row)) end

-- What a renewal needs, in a small row of its own. beaten: 0 no heartbeat since the registration,
-- 1 heartbeats keep the lease; 2 and 3 the same while draining, when renewals change nothing.
local function renewal(row, beaten) return int(row.ttl) .. ' ' .. row.inc .. ' ' .. beaten end

local function put_renew(id, row, beaten) call('HSET', RENEW, id, renewal(row, beaten)) end

local function beaten_of(id)
  local raw = call('HGET', RENEW, id)
  return raw and string.match(raw, '(%d)$') or '0'
end

-- The expiring key: TTL exactly the lease's, readable by any client of the store.
local function put_key(id, shown, deadline)
  derive('SET', SERVICES .. id, shown, 'PXAT', int(deadline + skew))
end

local function project(id, row, doc, admin, suspect, deadline)
  put_key(id, document(row, doc, admin, suspect), deadline)
end

local function is_suspect(id) return call('ZSCORE', HELD, id) ~= false end

-- The deadline moved and nothing else did: re-date the expiring key, or write it again when missing.
local function redate(id, deadline)
  if derive('PEXPIREAT', SERVICES .. id, int(deadline + skew)) == 1 then return end
  local row = get_row(id)
  if row then project(id, row, call('HGET', DOCS, id) or '{}', admin_of(id), is_suspect(id), deadline) end
end

local function index_terms(row, admin)
  local terms = cjson.decode(row.terms)
  for _, c in ipairs(undeclared(row)) do terms[#terms + 1] = 'capability:' .. c.name end
  terms[#terms + 1] = 'health:' .. effective(row, admin)
  return terms
end

-- Moves index membership from one set of terms to another; either may be nil. With `join` it is left to
-- that to add the id to a term's set.
local function reindex(id, before, after, join)
  local keep = {}
  for _, t in ipairs(after or {}) do keep[t] = true end
  for _, t in ipairs(before or {}) do
    if not keep[t] then derive('SREM', INDEX .. t, id) end
  end
  for _, t in ipairs(after or {}) do
    if join then join(t) else derive('SADD', INDEX .. t, id) end
  end
end

-- Takes an instance away: event, core keys, tombstone, derived data.
local function remove(id, row, kind, reason)
  local admin = admin_of(id)
  local state = state_of(admin)
  local terms = index_terms(row, admin)
  local rev = emit({kind = kind, id = id, reason = reason, had = claimed(row), has = '[]'})
  call('HDEL', INST, id)
  call('HDEL', DOCS, id)
  call('HDEL', RENEW, id)
  call('ZREM', LEASES, id)
  call('ZREM', HELD, id)
  call('ZREM', DRAINS, id)
  call('ZREM', CHECKS, id)
  call('HDEL', CHECKSTATE, id)
  for _, name in ipairs({'findings', 'transitions', 'discovered'}) do derive('HDEL', beside(name), id) end
  for n = #transitions, 1, -1 do
    if transitions[n][1] == id then table.remove(transitions, n) end
  end
  -- An operator's maintenance outlives a crash (the tombstone's life at most), not a deregistration.
  if kind ~= 'service:expired' or state ~= 'maintenance' then
    call('HDEL', ADMIN, id)
    call('ZREM', UNTIL, id)
  end
  call('HSET', TOMBSTONES, id, cjson.encode({epoch = epoch, rev = tonumber(rev), at = now}))
  reindex(id, terms, nil)
  derive('DEL', SERVICES .. id)
  return rev
end

-- What becomes of a lease that has ended: a drain was asked for, anything else is a death.
local function end_lease(id, row)
  if state_of(admin_of(id)) == 'draining' then remove(id, row, 'service:unregistered', 'drained')
  else remove(id, row, 'service:expired', 'lease ended') end
end

-- The answer to an operation, a list of texts without NUL, is kept a while: a client library may send the
-- same operation again.
local function recalled(stored)
  local reply = {}
  for part in string.gmatch(stored .. '\0', '(%Z*)%z') do reply[#reply + 1] = part end
  return reply
end

local function answered()
  local stored = call('GET', OPS .. NONCE)
  if stored then return recalled(stored) end
end

local function answer(reply)
  call('SET', OPS .. NONCE, table.concat(reply, '\0'), 'PX', OP_MEMORY_MS)
  return reply
end

-- "" matches anything, "absent" only nothing, else the row's own "<epoch>-<rev>".
local function revision_matches(expected, row)
  if expected == '' then return true end
  if not row then return expected == 'absent' end
  return expected == row.epoch .. '-' .. int(row.rev)
end

-- Due at once. Counting begins anew; how often the status has changed of late is kept from the state
-- `before`. `write` takes the writes, instead of redis.call.
local function schedule_check(id, row, check, before, write)
  if check == '' then
    if not before then return end
    call('ZREM', CHECKS, id)
    call('HDEL', CHECKSTATE, id)
    derive('HDEL', beside('findings'), id)
    derive('HDEL', beside('discovered'), id)
    return
  end
  local state = cjson.decode(check)
  state.inc, state.since, state.counts, state.token = row.inc, L, '', ''
  state.flap = before and cjson.decode(before).flap or ''
  write('ZADD', CHECKS, int(L), id)
  write('HSET', CHECKSTATE, id, cjson.encode(state))
end

-- The renewal of an instance that the guard holds: it is live again, and says so once.
local function rescue(id)
  if call('ZREM', HELD, id) == 0 then return end
  local row = get_row(id)
  if not row then return end
  local admin, doc = admin_of(id), call('HGET', DOCS, id) or '{}'
  emit({kind = 'service:updated', id = id, row = row, doc = doc, admin = admin, reason = 'renewed'})
  put_row(id, row)
  project(id, row, doc, admin, false, tonumber(call('ZSCORE', LEASES, id)))
end
