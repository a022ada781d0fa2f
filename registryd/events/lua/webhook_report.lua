-- Records what came of an attempt. A token counts once; but what was delivered is delivered, whoever has
-- the claim by now.
--
-- ARGV 4 subscription   5 delivery   6 token   7 delivered, retry, dead or gone   8 pause before the next
--      attempt, ms   9 attempt (JSON) for the list   10 error or ""   11 attempts kept
-- Returns {"noted"} | {"stale"} | {"unknown"}: the subscription or the delivery is no more
if call('HEXISTS', HOOKS, ARGV[4]) == 0 then return {'unknown'} end
local id, delivery, outcome = ARGV[4], ARGV[5], ARGV[7]
local keys = keys_of(id)
call('LPUSH', keys.attempts, ARGV[9])
call('LTRIM', keys.attempts, 0, ARGV[11] - 1)
local item = item_of(keys, delivery)
if not item then return {'unknown'} end
if outcome == 'delivered' then
  if item.died then call('ZREM', keys.dead, delivery) else take_out(keys, delivery, item) end
  forget(keys, delivery)
  call('HINCRBY', keys.figures, 'delivered', 1)
  call('HSET', keys.figures, 'last', int(now))
elseif item.token ~= ARGV[6] or item.died then return {'stale'}
else
  item.error, item.token = ARGV[10], ''
  call('HINCRBY', keys.figures, 'failed', 1)
  if outcome == 'retry' then
    call('HSET', keys.items, delivery, cjson.encode(item))
    call('ZADD', keys.queue, int(now + ARGV[8]), delivery)
  else
    bury(keys, delivery, item, ARGV[10])
    if outcome == 'gone' then
      call('HSET', DISABLED, id, cjson.encode({reason = 'the receiver answered 410 Gone', at = now}))
      call('HINCRBY', STATE, 'version', 1)
    end
  end
end
set_ready(id, keys)
return {'noted'}
