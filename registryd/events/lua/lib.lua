-- Prepended to every script of webhooks and history: clock, keys of a subscription, small moves.
--
-- KEYS   1 change stream   2 subscriptions (hash: id → JSON, never parsed here)   3 state (hash: turn,
--        until, cursor, version, seq)   4 ready (zset: id → when its next delivery is due)
--        5 disabled (hash: id → JSON of why)   6 audit (stream: what happened, of everything)
-- ARGV   1 key prefix   2 tag ("" or "{p}:")   3 now in ms, "0" = the store's clock   4… the script's own
--
-- A subscription's own keys are <prefix>:webhooks:<id>: and
--   queue    zset  delivery → due ms; while an attempt is under way, when its lease ends
--   order    zset  the same deliveries by number: the oldest first
--   items    hash  delivery → cjson {event, type, subject, queued, attempts, token, size, status, error, died}
--   bodies   hash  delivery → the event as it is sent
--   dead     zset  deliveries given up → when
--   attempts list  JSON of the latest attempts, the newest first
--   figures  hash  bytes waiting, and counts since the beginning
-- A delivery is a number with leading zeros: deliveries due at the same time leave in order.
local STREAM, HOOKS, STATE, READY, DISABLED, AUDIT = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local HISTORY = ARGV[1] .. ':history:' .. ARGV[2]
local PARTS = {'queue', 'order', 'items', 'bodies', 'dead', 'attempts', 'figures'}
local MAX_DEAD = 1000
local AUDIT_KEPT, SERVICE_KEPT, SERVICE_KEPT_MS = 10000, 1000, 7 * 86400000
local call = redis.call

local function int(x) return string.format('%.0f', x) end

local now = tonumber(ARGV[3])
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

local function keys_of(id)
  local keys = {}
  for _, part in ipairs(PARTS) do keys[part] = ARGV[1] .. ':webhooks:' .. ARGV[2] .. id .. ':' .. part end
  return keys
end

local function item_of(keys, delivery)
  local raw = call('HGET', keys.items, delivery)
  if not raw then return nil end
  return cjson.decode(raw)
end

-- When a subscription is to be looked at next: never, while it is disabled or has nothing to send.
local function set_ready(id, keys)
  local head = call('ZRANGE', keys.queue, 0, 0, 'WITHSCORES')
  if head[2] and call('HEXISTS', DISABLED, id) == 0 then call('ZADD', READY, head[2], id)
  else call('ZREM', READY, id) end
end

local function forget(keys, delivery)
  call('HDEL', keys.items, delivery)
  call('HDEL', keys.bodies, delivery)
end

local function take_out(keys, delivery, item)
  call('ZREM', keys.queue, delivery)
  call('ZREM', keys.order, delivery)
  call('HINCRBY', keys.figures, 'bytes', -item.size)
end

-- Gives a waiting delivery up. Beyond the limit the oldest of the dead are forgotten, and counted.
local function bury(keys, delivery, item, why)
  take_out(keys, delivery, item)
  item.token, item.died, item.error = '', now, why
  call('HSET', keys.items, delivery, cjson.encode(item))
  call('ZADD', keys.dead, now, delivery)
  call('HINCRBY', keys.figures, 'died', 1)
  while call('ZCARD', keys.dead) > MAX_DEAD do
    local oldest = call('ZPOPMIN', keys.dead)[1]
    forget(keys, oldest)
    call('HINCRBY', keys.figures, 'forgotten', 1)
  end
end

local function record(service, entry)
  call('XADD', AUDIT, 'MAXLEN', '~', AUDIT_KEPT, '*', 'e', entry)
  if service ~= '' then
    call('XADD', HISTORY .. service, 'MAXLEN', '~', SERVICE_KEPT, '*', 'e', entry)
  end
end
