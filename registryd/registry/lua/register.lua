-- Registers an instance, or renews its lease when nothing about it changed.
--
-- ARGV 7 id   8 incarnation ("" = any)   9 ttl ms   10 document   11 terms (JSON array)
--      12 check {"interval","rise","fall"} or ""   13 claimed health or ""
--      14 expected revision ("" any, "absent", "<epoch>-<rev>")   15 endpoint
--      16 "exclusive": refuse an id that a live instance at another endpoint holds
--      17 claims (JSON array of "name@version")
-- Returns {outcome, epoch, rev, deadline (wall ms), row, admin, suspect}; outcome is one of
--   registered, updated, same, mismatch (expected revision), taken (exclusive)
local stored = answered()
if stored then return stored end
local id, inc, ttl, doc = ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10]
local terms, check, claim = ARGV[11], ARGV[12], ARGV[13]

local row = get_row(id)
if row and tonumber(call('ZSCORE', LEASES, id) or -1) < L then
  if not revision_matches(ARGV[14], nil) then return {'mismatch'} end
  end_lease(id, row)
  row = nil
end
if not revision_matches(ARGV[14], row) then return {'mismatch'} end
if row and ARGV[16] == 'exclusive' and row.endpoint ~= ARGV[15] then return {'taken'} end

local admin = admin_of(id)
local draining = state_of(admin) == 'draining'
local function reply(outcome, r, encoded, deadline)
  return answer({outcome, r.epoch, int(r.rev), int(deadline + skew), encoded, admin, ''})
end
-- A claim counts until the first probe has reported, and again when nothing probes any more.
local probed = row and check ~= '' and row.probed or 0
local heard = row and claim ~= '' and probed ~= 1 and claim ~= row.health

if row and not heard and row.ttl == ttl and row.terms == terms and row.check == check
    and (inc == '' or inc == row.inc) and call('HGET', DOCS, id) == doc then
  commit_clock()
  local deadline = L + ttl
  if draining then deadline = tonumber(call('ZSCORE', LEASES, id))
  else
    call('ZADD', LEASES, int(deadline), id)
    if is_suspect(id) then
      rescue(id)
      row = get_row(id)
    else redate(id, deadline) end
  end
  return finish(reply('same', row, cjson.encode(row), deadline))
end

local moment = timestamp()
local fresh = {
  ttl = ttl, inc = inc ~= '' and inc or NONCE, op = NONCE,
  health = claim ~= '' and claim or 'unknown', since = moment, extra = '', probed = 0,
  registered = moment, updated = moment, endpoint = ARGV[15],
  terms = terms, check = check, caps = ARGV[17]}
local kind, before, had = 'service:registered', nil, '[]'
if row then
  kind = 'service:updated'
  fresh.discovered = still_discovered(row, fresh.endpoint, check)
  before, had = index_terms(row, admin), row.caps and claimed(row) or claimed(fresh)
  fresh.registered, fresh.probed = row.registered, probed
  if not heard then fresh.health, fresh.since, fresh.extra = row.health, row.since, row.extra end
end
local deadline = L + ttl
if draining then deadline = tonumber(call('ZSCORE', LEASES, id)) end

local _, encoded, shown = emit({kind = kind, id = id, row = fresh, doc = doc, admin = admin, had = had, has = claimed(fresh)})
if row then remember_transition(id, effective(row, admin), effective(fresh, admin), 'registered') end
commit_clock()
call('HSET', INST, id, encoded)
call('HSET', DOCS, id, doc)
put_renew(id, fresh, draining and '2' or '0')
call('ZADD', LEASES, int(deadline), id)
call('ZREM', HELD, id)
call('HDEL', TOMBSTONES, id)
schedule_check(id, fresh, check)
local result = reply(row and 'updated' or 'registered', fresh, encoded, deadline)
reindex(id, before, index_terms(fresh, admin))
put_key(id, shown, deadline)
return finish(result)
