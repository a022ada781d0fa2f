-- Registers instances, or renews their leases when nothing about them changed: each for itself, many in
-- one call.
--
-- ARGV 7… for each instance, no id twice:
--      nonce of its operation, and behind a "|" who asked for it   id   incarnation ("" = any)   ttl ms
--      document   terms (JSON array)   check {"interval","rise","fall"} or ""   claimed health or ""
--      expected revision ("" any, "absent", "<epoch>-<rev>")   endpoint
--      "exclusive": refuse an id that a live instance at another endpoint holds
--      claims (JSON array of "name@version")
-- Returns for each {outcome, epoch, rev, deadline (wall ms), row, admin, suspect}; outcome is one of
--   registered, updated, same, mismatch (expected revision), taken (exclusive)
local WIDTH = 12
local count = (#ARGV - 6) / WIDTH
local ids, ops = {}, {}
for k = 1, count do
  local at = 6 + (k - 1) * WIDTH
  operate(ARGV[at + 1])
  ids[k], ops[k] = ARGV[at + 2], OPS .. NONCE
end
local known, rows, admins = call('MGET', unpack(ops)), call('HMGET', INST, unpack(ids)), call('HMGET', ADMIN, unpack(ids))

-- What all of them write to the same keys goes there in one command for all, behind their events.
local writes, named = {}, {}
local function later(command, key, ...)
  local write = named[command .. key]
  if not write then
    write = {command, key}
    named[command .. key] = write
    writes[#writes + 1] = write
  end
  local n = #write
  for k = 1, select('#', ...) do write[n + k] = select(k, ...) end
end
local projections, touched = {}, false

local function register(k, at)
  if known[k] then return recalled(known[k]) end
  local id, inc, ttl, doc = ids[k], ARGV[at + 3], tonumber(ARGV[at + 4]), ARGV[at + 5]
  local terms, check, claim, expected = ARGV[at + 6], ARGV[at + 7], ARGV[at + 8], ARGV[at + 9]

  local row = rows[k] and cjson.decode(rows[k])
  if row and tonumber(call('ZSCORE', LEASES, id) or -1) < L then
    if not revision_matches(expected, nil) then return {'mismatch'} end
    end_lease(id, row)
    row = nil
    admins[k] = admin_of(id)
  end
  if not revision_matches(expected, row) then return {'mismatch'} end
  if row and ARGV[at + 11] == 'exclusive' and row.endpoint ~= ARGV[at + 10] then return {'taken'} end

  local admin = admins[k] or ''
  local draining = state_of(admin) == 'draining'
  local function reply(outcome, r, encoded, deadline)
    return answer({outcome, r.epoch, int(r.rev), int(deadline + skew), encoded, admin, ''})
  end
  -- A claim counts until the first probe has reported, and again when nothing probes any more.
  local probed = row and check ~= '' and row.probed or 0
  local heard = row and claim ~= '' and probed ~= 1 and claim ~= row.health

  if row and not heard and row.ttl == ttl and row.terms == terms and row.check == check
      and (inc == '' or inc == row.inc) and call('HGET', DOCS, id) == doc then
    touched = true
    local deadline = L + ttl
    if draining then deadline = tonumber(call('ZSCORE', LEASES, id))
    else
      call('ZADD', LEASES, int(deadline), id)
      if is_suspect(id) then
        rescue(id)
        row = get_row(id)
      else redate(id, deadline) end
    end
    return reply('same', row, cjson.encode(row), deadline)
  end

  local moment = timestamp()
  local fresh = {
    ttl = ttl, inc = inc ~= '' and inc or NONCE, op = NONCE,
    health = claim ~= '' and claim or 'unknown', since = moment, extra = '', probed = 0,
    registered = moment, updated = moment, endpoint = ARGV[at + 10],
    terms = terms, check = check, caps = ARGV[at + 12]}
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
  later('HSET', INST, id, encoded)
  later('HSET', DOCS, id, doc)
  later('HSET', RENEW, id, renewal(fresh, draining and '2' or '0'))
  later('ZADD', LEASES, int(deadline), id)
  later('HDEL', TOMBSTONES, id)
  if row then later('ZREM', HELD, id) end
  touched = true
  schedule_check(id, fresh, check, row and call('HGET', CHECKSTATE, id), later)
  projections[#projections + 1] = {id = id, before = before, after = index_terms(fresh, admin), shown = shown, deadline = deadline}
  return reply(row and 'updated' or 'registered', fresh, encoded, deadline)
end

local replies = {}
for k = 1, count do
  local at = 6 + (k - 1) * WIDTH
  operate(ARGV[at + 1])
  replies[k] = register(k, at)
end
if touched then commit_clock() end
for _, write in ipairs(writes) do call(unpack(write)) end

local joined, terms = {}, {}
for _, p in ipairs(projections) do
  reindex(p.id, p.before, p.after, function(term)
    if not joined[term] then
      joined[term] = {}
      terms[#terms + 1] = term
    end
    table.insert(joined[term], p.id)
  end)
  put_key(p.id, p.shown, p.deadline)
end
for _, term in ipairs(terms) do derive('SADD', INDEX .. term, unpack(joined[term])) end
return finish(replies)
