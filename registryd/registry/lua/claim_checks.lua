-- Claims due checks for the caller alone. A claimer that dies costs one round: the next is already due.
--
-- ARGV 7 at most   8 stretch: how many times longer than asked the intervals are to be
--      9 jitter, as a part of the interval   10 a random number, 0 <= r < 1
--      11 an id to claim now, due or not, also while probing is paused; or ""
-- Returns {"on" or "paused", ms until the next one is due (-1 = none), lease clock,
--   then for each claimed check: id, its row in checkstate, document, health, ms late,
--   ms since the lease was last renewed (-1 = the lease does not tell), what counts as discovered ("" = nothing)}
local only, spread, random = ARGV[11], tonumber(ARGV[9]), tonumber(ARGV[10])
local probing = call('HMGET', META, 'probing', 'resumed')
commit_clock()
local ids
if only ~= '' then ids = {only}
elseif probing[1] == 'paused' then return {'paused', '-1', int(L)}
else ids = call('ZRANGEBYSCORE', CHECKS, '-inf', int(L), 'LIMIT', 0, ARGV[7]) end
local out = {probing[1] or 'on', '-1', int(L)}
for i, id in ipairs(ids) do
  local raw, row, due = call('HGET', CHECKSTATE, id), get_row(id), call('ZSCORE', CHECKS, id)
  if not raw or not row then call('ZREM', CHECKS, id)
  else
    local state = cjson.decode(raw)
    state.token = NONCE .. '.' .. i
    raw = cjson.encode(state)
    call('HSET', CHECKSTATE, id, raw)
    -- The golden ratio spreads one random number over all of a batch.
    local part = (random + i * 0.6180339887) % 1
    call('ZADD', CHECKS, int(L + state.interval * tonumber(ARGV[8]) * (1 + spread * (part - 0.5))), id)
    -- What was due while probing was paused is late only since then.
    local late = math.max(0, L - math.max(tonumber(due or L), tonumber(probing[2] or 0)))
    local renewed = -1
    if not is_suspect(id) and not call('ZSCORE', DRAINS, id) then
      local deadline = tonumber(call('ZSCORE', LEASES, id))
      renewed = math.max(0, L - math.max(deadline - row.ttl, state.since))
    end
    for _, value in ipairs({id, raw, call('HGET', DOCS, id) or '{}', row.health, int(late), int(renewed),
      row.discovered or ''}) do
      out[#out + 1] = value
    end
  end
end
local first = call('ZRANGE', CHECKS, 0, 0, 'WITHSCORES')
if first[2] then out[2] = int(math.max(0, tonumber(first[2]) - L)) end
return out
