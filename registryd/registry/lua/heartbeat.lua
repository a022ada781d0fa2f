-- Renews leases, many at once. Never creates one; until swept, a late heartbeat still renews.
--
-- ARGV 7… triples: id, incarnation ("" = any), ttl ms the caller believes in ("" = unknown)
-- Returns {now (wall ms), then for each exception: position (1-based), kind, value}; kinds are
--   unknown, superseded (value: the current incarnation), ttl (value: the real ttl ms; renewed),
--   draining (value: its end, wall ms; not moved)
-- All others are renewed until now + ttl: an ordinary batch answers one number.
local ids = {}
for i = 7, #ARGV, 3 do ids[#ids + 1] = ARGV[i] end
commit_clock()
local rows = call('HMGET', RENEW, unpack(ids))
local out, moves, renewed = {int(now)}, {}, {}
local function except(i, kind, value)
  out[#out + 1] = i
  out[#out + 1] = kind
  out[#out + 1] = value
end
for i, id in ipairs(ids) do
  local raw, inc, believed = rows[i], ARGV[3 * i + 5], ARGV[3 * i + 6]
  if not raw then except(i, 'unknown', '')
  else
    local ttl, current, beaten = string.match(raw, '^(%d+) (%S+) (%d)$')
    if inc ~= '' and inc ~= current then except(i, 'superseded', current)
    elseif beaten >= '2' then except(i, 'draining', int(tonumber(call('ZSCORE', LEASES, id)) + skew))
    else
      if ttl ~= believed then except(i, 'ttl', ttl) end
      if beaten == '0' then call('HSET', RENEW, id, ttl .. ' ' .. current .. ' 1') end
      moves[#moves + 1] = int(L + ttl)
      moves[#moves + 1] = id
      renewed[#renewed + 1] = L + ttl
    end
  end
end
if #moves == 0 then return out end
call('ZADD', LEASES, unpack(moves))
local held = nil
if guard ~= 0 then
  local names = {}
  for i = 2, #moves, 2 do names[#names + 1] = moves[i] end
  held = call('ZMSCORE', HELD, unpack(names))
end
for i, deadline in ipairs(renewed) do
  local id = moves[2 * i]
  if held and held[i] then rescue(id) else redate(id, deadline) end
end
return finish(out)
