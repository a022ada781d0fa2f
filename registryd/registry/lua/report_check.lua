-- Counts one finished probe. A token counts once, for the incarnation it was claimed for.
--
-- ARGV 7 id   8 token   9 status the probe found (healthy, degraded, unhealthy)
--      10 further members of health (JSON text, ",…" or "")
-- Returns {"counted", status} | {"changed", status, epoch, rev} | {"stale"} | {"gone"}
-- A passing probe renews the lease of an instance that has sent no heartbeat since it registered.
local stored = answered()
if stored then return stored end
local id, token, found = ARGV[7], ARGV[8], ARGV[9]
local raw = call('HGET', CHECKSTATE, id)
if not raw then return {'gone'} end
local state = cjson.decode(raw)
if token == '' or state.token ~= token then return {'stale'} end
local row = get_row(id)
if not row or row.inc ~= state.inc then return {'gone'} end

local passed = found ~= 'unhealthy'
if passed then
  state.successes, state.failures = state.successes + 1, 0
else
  state.failures, state.successes = state.failures + 1, 0
end
state.token = ''
local status = row.health
if passed and state.successes >= state.rise then status = found
elseif not passed and state.failures >= state.fall then status = 'unhealthy' end

local admin, doc = admin_of(id), call('HGET', DOCS, id) or '{}'
local draining = state_of(admin) == 'draining'
local renews = passed and not draining and beaten_of(id) == '0'
local suspect = is_suspect(id)
local rescued = suspect and renews
local result = {'counted', status}
local before = nil
if status ~= row.health then
  local was = effective(row, admin)
  before = index_terms(row, admin)
  row.health, row.since, row.extra, row.probed = status, rfc3339(now), ARGV[10], 1
  local is = effective(row, admin)
  local change = {kind = 'service:updated', id = id, row = row, doc = doc, admin = admin,
    suspect = suspect and not rescued, reason = 'probed', old = was}
  if is ~= was then change.kind, change.new = 'service:health:changed', is end
  local rev = emit(change)
  put_row(id, row)
  result = {'changed', status, epoch, rev}
elseif row.probed ~= 1 then
  row.probed = 1
  put_row(id, row)
end
commit_clock()
call('HSET', CHECKSTATE, id, cjson.encode(state))
local deadline = tonumber(call('ZSCORE', LEASES, id))
if renews then
  deadline = L + row.ttl
  call('ZADD', LEASES, int(deadline), id)
end
if rescued then
  -- A change of status has just told that it is live again.
  if before then call('ZREM', HELD, id) else rescue(id) end
end
answer(result)
if before then
  reindex(id, before, index_terms(row, admin))
  project(id, row, doc, admin, suspect and not rescued, deadline)
elseif not rescued then redate(id, deadline) end
return finish(result)
