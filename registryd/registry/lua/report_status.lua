-- Records what an instance says of its own health. It counts only until the first probe has reported.
--
-- ARGV 7 id   8 incarnation ("" = any)   9 status   10 further members of health (JSON text, ",…" or "")
-- Returns {"changed", epoch, rev} | {"same"} | {"probed"} | {"unknown"} | {"superseded", incarnation}
local stored = answered()
if stored then return stored end
local id, status = ARGV[7], ARGV[9]
local row = get_row(id)
if not row then return {'unknown'} end
if ARGV[8] ~= '' and ARGV[8] ~= row.inc then return {'superseded', row.inc} end
if row.probed == 1 then return {'probed'} end
if status == row.health then return answer({'same'}) end
local admin, doc = admin_of(id), call('HGET', DOCS, id) or '{}'
local was, before = effective(row, admin), index_terms(row, admin)
row.health, row.since, row.extra = status, timestamp(), ARGV[10]
local is = effective(row, admin)
local suspect = is_suspect(id)
local change = {kind = 'service:updated', id = id, row = row, doc = doc, admin = admin,
  suspect = suspect, reason = 'reported by the instance', old = was}
if is ~= was then change.kind, change.new = 'service:health:changed', is end
local rev = emit(change)
remember_transition(id, was, is, change.reason)
commit_clock()
put_row(id, row)
local result = answer({'changed', epoch, rev})
reindex(id, before, index_terms(row, admin))
project(id, row, doc, admin, suspect, tonumber(call('ZSCORE', LEASES, id)))
return finish(result)
