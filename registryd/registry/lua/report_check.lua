-- Records one finished probe. A token counts once, for the incarnation it was claimed for; so nobody
-- else has counted since the claim, and what the reporter decided from the claimed row still holds.
--
-- ARGV 7 id   8 token   9 "1" when the probe passed   10 status to show from now on ("" = as it is)
--      11 the counters, and 12 the memory of transitions: texts kept for the next claim
--      13 what the probe found (JSON object, "" = nothing)   14 its error, for the history
--      15 further members of health at a change (JSON text, ",…" or "")
--      16 what its answer told (JSON object, "" = as before, "none" = no longer anything)
--      17 the status that 10 was decided on
--      18 what of that counts as discovered (row.discovered; "" = as before, "none" = no longer anything)
-- Returns {"counted", status} | {"changed", status, epoch, rev} | {"stale"} | {"gone"}
-- A passing probe renews the lease of an instance that has sent no heartbeat since it registered;
-- where heartbeats are all that is looked at, there is no probe that could.
local stored = answered()
if stored then return stored end
local id, token, passed, wanted = ARGV[7], ARGV[8], ARGV[9] == '1', ARGV[10]
local raw = call('HGET', CHECKSTATE, id)
if not raw then return {'gone'} end
local state = cjson.decode(raw)
if token == '' or state.token ~= token then return {'stale'} end
local row = get_row(id)
if not row or row.inc ~= state.inc then return {'gone'} end

state.token = ''
state.counts, state.flap = ARGV[11], ARGV[12]
-- An instance that is not probed may have spoken for itself since.
if state.beats and row.health ~= ARGV[17] then wanted = '' end
local status = wanted ~= '' and wanted or row.health
local probed = state.beats and row.probed or 1

local admin, doc = admin_of(id), call('HGET', DOCS, id) or '{}'
local draining = state_of(admin) == 'draining'
local renews = passed and not state.beats and not draining and beaten_of(id) == '0'
local suspect = is_suspect(id)
local rescued = suspect and renews
local result = {'counted', status}
local before = nil
local turned, finds = status ~= row.health, ARGV[18] ~= ''
if turned or finds then
  local was, had = effective(row, admin), claimed(row)
  before = index_terms(row, admin)
  if turned then row.health, row.since, row.extra = status, timestamp(), ARGV[15] end
  if finds then row.discovered = ARGV[18] ~= 'none' and ARGV[18] or nil end
  row.probed = probed
  local is = effective(row, admin)
  local change = {kind = 'service:updated', id = id, row = row, doc = doc, admin = admin,
    suspect = suspect and not rescued, reason = turned and 'probed' or 'discovered', old = was,
    had = had, has = claimed(row)}
  if is ~= was then change.kind, change.new = 'service:health:changed', is end
  local rev = emit(change)
  remember_transition(id, was, is, 'probed', ARGV[14])
  put_row(id, row)
  result = {'changed', status, epoch, rev}
elseif row.probed ~= probed then
  row.probed = probed
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
  -- A change has just told that it is live again.
  if before then call('ZREM', HELD, id) else rescue(id) end
end
answer(result)
if ARGV[13] ~= '' then derive('HSET', beside('findings'), id, ARGV[13]) end
if ARGV[16] == 'none' then derive('HDEL', beside('discovered'), id)
elseif ARGV[16] ~= '' then derive('HSET', beside('discovered'), id, ARGV[16]) end
if before then
  reindex(id, before, index_terms(row, admin))
  project(id, row, doc, admin, suspect and not rescued, deadline)
elseif not rescued then redate(id, deadline) end
return finish(result)
