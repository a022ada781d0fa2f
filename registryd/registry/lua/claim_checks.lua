-- Claims due checks for the caller alone. A claimer that dies costs one round: the next is already due.
--
-- ARGV 7 at most
-- Returns {id, incarnation, token, interval ms, …} for each claimed check
local out = {}
commit_clock()
for i, id in ipairs(call('ZRANGEBYSCORE', CHECKS, '-inf', int(L), 'LIMIT', 0, ARGV[7])) do
  local raw = call('HGET', CHECKSTATE, id)
  if not raw then call('ZREM', CHECKS, id)
  else
    local state = cjson.decode(raw)
    state.token = NONCE .. '.' .. i
    call('HSET', CHECKSTATE, id, cjson.encode(state))
    call('ZADD', CHECKS, int(L + state.interval), id)
    out[#out + 1] = id
    out[#out + 1] = state.inc
    out[#out + 1] = state.token
    out[#out + 1] = int(state.interval)
  end
end
return out
