-- Puts deliveries that were given up back into the queue, due now, with all attempts before them.
--
-- ARGV 4 subscription   5 at most   6 most deliveries waiting   7… deliveries; none means the oldest
-- Returns {"replayed", how many, dead ones left} | {"unknown"}
if call('HEXISTS', HOOKS, ARGV[4]) == 0 then return {'unknown'} end
local id, keys = ARGV[4], keys_of(ARGV[4])
local wanted = {}
if #ARGV > 6 then for i = 7, #ARGV do wanted[#wanted + 1] = ARGV[i] end
else wanted = call('ZRANGE', keys.dead, 0, ARGV[5] - 1) end
local count, room = 0, tonumber(ARGV[6]) - call('ZCARD', keys.order)
for _, delivery in ipairs(wanted) do
  if count < room and call('ZREM', keys.dead, delivery) == 1 then
    local item = item_of(keys, delivery)
    item.attempts, item.died = 0, nil
    call('HSET', keys.items, delivery, cjson.encode(item))
    call('ZADD', keys.queue, int(now), delivery)
    call('ZADD', keys.order, tonumber(delivery), delivery)
    call('HINCRBY', keys.figures, 'bytes', item.size)
    count = count + 1
  end
end
set_ready(id, keys)
return {'replayed', count, call('ZCARD', keys.dead)}
