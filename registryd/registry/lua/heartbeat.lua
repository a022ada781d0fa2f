-- Renews leases, many at once. Never creates one; until swept, a late heartbeat still renews.
--
-- ARGV 7… triples: id, incarnation ("" = any), ttl ms the caller believes in ("" = unknown)
-- Returns {now (wall ms), then for each exception: position (1-based), kind, value}; kinds are
--   unknown, superseded (value: the current incarnation), ttl (value: the real ttl ms; renewed),
--   draining (value: its end, wall ms; not moved)
-- All others are renewed until now + ttl: an ordinary batch answers one number.
--
-- The hottest script: it parses no more than it must, and hands numbers over unformatted.
local count = (#ARGV - 6) / 3
local ids = {}
for i = 1, count do ids[i] = ARGV[3 * i + 4] end
commit_clock()
local rows = call('HMGET', RENEW, unpack(ids))
local out, moves, n = {int(now)}, {}, 0
local find, sub, byte = string.find, string.sub, string.byte
local NEVER, DRAINING = byte('0'), byte('2')
local function except(i, kind, value)
  local at = #out
  out[at + 1], out[at + 2], out[at + 3] = i, kind, value
end
for i = 1, count do
  local raw = rows[i]
  if not raw then except(i, 'unknown', '')
  else
    local inc = ARGV[3 * i + 5]
    local space = find(raw, ' ', 1, true)
    local ttl, beaten = sub(raw, 1, space - 1), byte(raw, -1)
    if inc ~= '' and inc ~= sub(raw, space + 1, -3) then except(i, 'superseded', sub(raw, space + 1, -3))
    elseif beaten >= DRAINING then except(i, 'draining', int(tonumber(call('ZSCORE', LEASES, ids[i])) + skew))
    else
      if ttl ~= ARGV[3 * i + 6] then except(i, 'ttl', ttl) end
      if beaten == NEVER then call('HSET', RENEW, ids[i], sub(raw, 1, -2) .. '1') end
      moves[n + 1], moves[n + 2] = L + ttl, ids[i]
      n = n + 2
    end
  end
end
if n == 0 then return out end
call('ZADD', LEASES, unpack(moves))
local held = nil
if guard ~= 0 then
  local names = {}
  for i = 2, n, 2 do names[#names + 1] = moves[i] end
  held = call('ZMSCORE', HELD, unpack(names))
end
for i = 2, n, 2 do
  local id, deadline = moves[i], moves[i - 1]
  if held and held[i / 2] then rescue(id)
  elseif pcall_('PEXPIREAT', SERVICES .. id, deadline + skew) ~= 1 then redate(id, deadline) end
end
return finish(out)
