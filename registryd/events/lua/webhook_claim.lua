-- Claims due deliveries for the caller alone. One whose claimer dies is due again when the lease ends.
--
-- ARGV 4 token of this call   5 at most   6 at most for one subscription   7 lease ms
--      8… pairs: subscription, how many the caller still takes for it (for those it has under way)
-- Returns {ms until the next is due ("" = nothing waits), then for each: subscription, its JSON, delivery,
--   item, token, body}
local left, each, lease = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local room = {}
for i = 8, #ARGV, 2 do room[ARGV[i]] = tonumber(ARGV[i + 1]) end
local out = {''}
local due = call('ZRANGEBYSCORE', READY, '-inf', int(now), 'LIMIT', 0, left + (#ARGV - 7) / 2)
for _, id in ipairs(due) do
  local keys, hook = keys_of(id), call('HGET', HOOKS, id)
  local take = math.min(left, room[id] or each)
  if hook and take > 0 then
    for _, delivery in ipairs(call('ZRANGEBYSCORE', keys.queue, '-inf', int(now), 'LIMIT', 0, take)) do
      local item = item_of(keys, delivery)
      item.attempts, item.token = item.attempts + 1, ARGV[4] .. '.' .. #out
      local encoded = cjson.encode(item)
      call('HSET', keys.items, delivery, encoded)
      call('ZADD', keys.queue, int(now + lease), delivery)
      for _, value in ipairs({id, hook, delivery, encoded, item.token, call('HGET', keys.bodies, delivery)}) do
        out[#out + 1] = value
      end
      left = left - 1
    end
  end
  if hook then set_ready(id, keys) else call('ZREM', READY, id) end
  if left == 0 then break end
end
local head = call('ZRANGE', READY, 0, 0, 'WITHSCORES')
if head[2] then out[1] = int(math.max(0, head[2] - now)) end
return out
