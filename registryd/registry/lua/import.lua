-- Carries out an import, or a further part of one that is committed; see import_stage.lua.
--
-- ARGV 7 "": the next part of what is committed. Else the reason that the marker is to give, and then
--      8… all of it, WIDTH texts for each instance:
--      "put" | "del"   id   guard   incarnation ("" = any)   ttl ms   document   terms (JSON array)
--      check or ""   claimed health or ""   endpoint   claims (JSON array of "name@version")
--      admin: "" none, "keep" as it is, else JSON   end of the maintenance, wall ms, or ""
--      registered (RFC 3339), or "" for now
-- An instance that is there is written or removed only if its incarnation is the guard ("" = it was not
-- there): who has registered since it was looked at, and who drains, stays as he is. One that is written
-- keeps its incarnation, health and time of registration.
-- Returns {"done", epoch, rev, written, removed} | {"more", parts left} | {"none"}: nothing is committed
--
-- Views take all of it at once: what was done in one call ("whole") when its marker comes, the event
-- registry:imported; what was done in parts ("part") by loading anew when the marker comes.
local WIDTH = 14
local stored = answered()
if stored then return stored end
local pending, parts = call('HMGET', META, 'import', 'imported', 'import_reason', 'import_by'), nil
local fields, reason = {}, ARGV[7]
if reason == '' then
  if not pending[1] then return {'none'} end
  parts = beside('import:' .. pending[1])
  fields = recalled(call('LINDEX', parts, 0) or '')
  reason, BY = pending[3], pending[4]
  MARK = {'import', 'part'}
else
  for i = 8, #ARGV do fields[i - 7] = ARGV[i] end
  MARK = {'import', 'whole'}
end

local function put(at)
  local id, row = fields[at + 2], get_row(fields[at + 2])
  local before, admin = row and index_terms(row, admin_of(id)), admin_of(id)
  if row and (row.inc ~= fields[at + 3] or state_of(admin) == 'draining') then return 0 end
  local ttl, doc, check, claim = tonumber(fields[at + 5]), fields[at + 6], fields[at + 8], fields[at + 9]
  local was, moment = row and effective(row, admin), timestamp()
  local fresh = {
    ttl = ttl, inc = fields[at + 4] ~= '' and fields[at + 4] or NONCE, op = NONCE,
    health = claim ~= '' and claim or 'unknown', since = moment, extra = '', probed = 0,
    registered = fields[at + 14] ~= '' and fields[at + 14] or moment, updated = moment,
    endpoint = fields[at + 10], terms = fields[at + 7], check = check, caps = fields[at + 11]}
  if row then
    fresh.inc, fresh.registered, fresh.health, fresh.extra = row.inc, row.registered, row.health, row.extra
    fresh.since, fresh.probed = row.since, check ~= '' and row.probed or 0
    fresh.discovered = still_discovered(row, fresh.endpoint, check)
  end
  if fields[at + 12] ~= 'keep' then admin = fields[at + 12] end
  local is = effective(fresh, admin)
  if is ~= was then fresh.since = moment end
  emit({kind = row and 'service:updated' or 'service:registered', id = id, row = fresh, doc = doc,
    admin = admin, reason = 'imported', had = row and (row.caps and claimed(row) or claimed(fresh)) or '[]', has = claimed(fresh)})
  if row then remember_transition(id, was, is, 'imported') end
  put_row(id, fresh)
  call('HSET', DOCS, id, doc)
  put_renew(id, fresh, row and beaten_of(id) or '0')
  call('ZADD', LEASES, int(L + ttl), id)
  call('HDEL', TOMBSTONES, id)
  call('ZREM', HELD, id)
  if fields[at + 12] ~= 'keep' then
    if admin == '' then call('HDEL', ADMIN, id) else call('HSET', ADMIN, id, admin) end
    if fields[at + 13] ~= '' then call('ZADD', UNTIL, fields[at + 13], id) else call('ZREM', UNTIL, id) end
  end
  if not row or row.check ~= check or row.endpoint ~= fresh.endpoint then schedule_check(id, fresh, check, row and call('HGET', CHECKSTATE, id), call) end
  reindex(id, before, index_terms(fresh, admin))
  project(id, fresh, doc, admin, false, L + ttl)
  return 1
end

local function del(at)
  local id, row = fields[at + 2], get_row(fields[at + 2])
  if not row or row.inc ~= fields[at + 3] or state_of(admin_of(id)) == 'draining' then return 0 end
  remove(id, row, 'service:unregistered', 'not in the import')
  return 1
end

local written, removed = 0, 0
for at = 0, math.floor(#fields / WIDTH) * WIDTH - 1, WIDTH do
  if fields[at + 1] == 'put' then written = written + put(at) else removed = removed + del(at) end
end
commit_clock()
if parts then
  call('LPOP', parts)
  local sums = recalled(pending[2])
  written, removed = written + tonumber(sums[1]), removed + tonumber(sums[2])
  local left = call('LLEN', parts)
  if left > 0 then
    call('HSET', META, 'imported', int(written) .. '\0' .. int(removed))
    return finish({'more', int(left)})
  end
  call('HDEL', META, 'import', 'imported', 'import_reason', 'import_by')
end
MARK = {}
local rev = emit({kind = 'registry:imported', ids = '[]', reason = reason})
return finish(answer({'done', epoch, rev, int(written), int(removed)}))
