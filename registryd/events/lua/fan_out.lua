-- Carries changes on: writes their history, queues their events for the subscriptions that want them, and
-- moves the cursor, all or nothing. Refused when somebody else has carried them, or has the turn.
--
-- ARGV 4 node   5 cursor as the caller knows it   6 cursor to come   7 version of the subscriptions that
--        were asked   8 most deliveries waiting for one subscription   9 most bytes   10 JSON of a gap in
--        the stream before these changes, or ""
--      11 n, then n pairs: service or "", history entry (JSON)
--      then for each event: id, type, subject, body, m, and m subscriptions
-- Returns {"carried", queued, given up because a queue was full} | {"lost"} | {"changed"}
local state = call('HMGET', STATE, 'turn', 'cursor', 'version')
if state[1] ~= ARGV[4] or (state[2] or '') ~= ARGV[5] then return {'lost'} end
if (state[3] or '0') ~= ARGV[7] then return {'changed'} end
local most, most_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
if ARGV[10] ~= '' then
  for _, id in ipairs(call('HKEYS', HOOKS)) do call('HSET', keys_of(id).figures, 'missed', ARGV[10]) end
end
local at, services = 12, {}
for _ = 1, tonumber(ARGV[11]) do
  record(ARGV[at], ARGV[at + 1])
  if ARGV[at] ~= '' then services[ARGV[at]] = true end
  at = at + 2
end
for service in pairs(services) do call('PEXPIRE', HISTORY .. service, SERVICE_KEPT_MS) end

local queued, overflow, touched = 0, 0, {}
local seq = tonumber(call('HGET', STATE, 'seq') or 0)
while at <= #ARGV do
  local event, kind, subject, body = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local first = at + 5
  at = first + tonumber(ARGV[at + 4])
  for i = first, at - 1 do
    local id = ARGV[i]
    local keys = touched[id]
    if not keys then
      keys = keys_of(id)
      touched[id] = keys
    end
    seq = seq + 1
    local delivery = string.format('%015d', seq)
    call('HSET', keys.items, delivery, cjson.encode({event = event, type = kind, subject = subject,
      queued = now, attempts = 0, token = '', size = #body}))
    call('HSET', keys.bodies, delivery, body)
    call('ZADD', keys.queue, int(now), delivery)
    call('ZADD', keys.order, seq, delivery)
    local bytes = call('HINCRBY', keys.figures, 'bytes', #body)
    queued = queued + 1
    while call('ZCARD', keys.order) > most or bytes > most_bytes do
      local oldest = call('ZRANGE', keys.order, 0, 0)[1]
      local item = item_of(keys, oldest)
      bury(keys, oldest, item, 'the queue was full')
      bytes = bytes - item.size
      overflow = overflow + 1
    end
  end
end
for id, keys in pairs(touched) do set_ready(id, keys) end
call('HSET', STATE, 'cursor', ARGV[6], 'seq', int(seq))
return {'carried', queued, overflow}
