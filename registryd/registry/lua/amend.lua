-- Changes an instance in place: PATCH, merge, maintenance, drain. Incarnation and deadline stay;
-- only a drain sets the deadline, and ending one gives the lease back.
--
-- ARGV 7 id   8 expected revision ("" = any)   9 reason
--      10 document, or "" to keep it, with 11 terms   12 ttl ms   13 check   14 endpoint
--      15 health status or "" to keep it
--      16 admin: "" keep, "none" take away, else JSON {"state","reason","by","until"}
--      17 end of the maintenance, wall ms, or ""   18 drain ms or ""
--      19 claims (JSON array of "name@version"), with 10
-- Returns {"amended", epoch, rev, deadline (wall ms), row, admin, suspect} | {"same", …}
--   | {"unknown"} | {"mismatch"}
local stored = answered()
if stored then return stored end
local id = ARGV[7]
local row = get_row(id)
if not row then return {'unknown'} end
if not revision_matches(ARGV[8], row) then return {'mismatch'} end
local admin, doc = admin_of(id), call('HGET', DOCS, id) or '{}'
local was, before = effective(row, admin), index_terms(row, admin)
local suspect = is_suspect(id)
local deadline = tonumber(call('ZSCORE', LEASES, id))
local function reply(outcome)
  return answer({outcome, row.epoch, int(row.rev), int(deadline + skew), cjson.encode(row), admin,
    suspect and '1' or ''})
end

local changed, checks_changed, rewritten = false, false, false
local had = row.caps and claimed(row)
if ARGV[10] ~= '' and (doc ~= ARGV[10] or row.ttl ~= tonumber(ARGV[12]) or row.check ~= ARGV[13]
    or row.terms ~= ARGV[11]) then
  -- When the lease was last renewed is told by its deadline less its ttl: another ttl, another count.
  checks_changed = row.check ~= ARGV[13] or row.endpoint ~= ARGV[14]
    or (row.ttl ~= tonumber(ARGV[12]) and string.find(row.check, '"beats"', 1, true) ~= nil)
  doc, row.terms = ARGV[10], ARGV[11]
  row.discovered = still_discovered(row, ARGV[14], ARGV[13])
  row.ttl, row.check, row.endpoint, row.caps = tonumber(ARGV[12]), ARGV[13], ARGV[14], ARGV[19]
  if row.check == '' then row.probed = 0 end
  changed, rewritten = true, true
end
if ARGV[15] ~= '' and ARGV[15] ~= row.health then
  row.health, row.since, row.extra, changed = ARGV[15], timestamp(), '', true
end
local was_draining = state_of(admin) == 'draining'
if ARGV[16] ~= '' then
  local wanted = ARGV[16] == 'none' and '' or ARGV[16]
  if wanted ~= admin then admin, changed = wanted, true end
end
if not changed then return finish(reply('same')) end

local is = effective(row, admin)
row.updated, row.op = timestamp(), NONCE
local drains = state_of(admin) == 'draining'
if ARGV[18] ~= '' then deadline = L + tonumber(ARGV[18])
elseif was_draining and not drains then deadline = L + row.ttl end
if drains then suspect = false end
-- A new status stands since now, whoever set it.
if is ~= was then row.since = row.updated end

local change = {kind = 'service:updated', id = id, row = row, doc = doc, admin = admin,
  suspect = suspect, reason = ARGV[9], old = was, had = had or claimed(row), has = claimed(row)}
if is ~= was and not rewritten then change.kind, change.new = 'service:health:changed', is end
emit(change)
remember_transition(id, was, is, ARGV[9])
commit_clock()
put_row(id, row)
call('HSET', DOCS, id, doc)
if ARGV[16] ~= '' then
  if admin == '' then call('HDEL', ADMIN, id) else call('HSET', ADMIN, id, admin) end
  if state_of(admin) == 'maintenance' and ARGV[17] ~= '' then call('ZADD', UNTIL, ARGV[17], id) else call('ZREM', UNTIL, id) end
end
local beaten = tonumber(beaten_of(id)) % 2
put_renew(id, row, int(drains and beaten + 2 or beaten))
call('ZADD', LEASES, int(deadline), id)
if drains then
  call('ZREM', HELD, id)
  call('ZADD', DRAINS, int(deadline), id)
elseif was_draining then call('ZREM', DRAINS, id) end
if checks_changed then schedule_check(id, row, row.check, call('HGET', CHECKSTATE, id), call) end
local result = reply('amended')
reindex(id, before, index_terms(row, admin))
project(id, row, doc, admin, suspect, deadline)
return finish(result)
