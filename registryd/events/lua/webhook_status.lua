-- How subscriptions fare.
--
-- ARGV 4… subscriptions
-- Returns for each: waiting, dead, ms since the oldest waiting was queued ("" = none), JSON of why it is
--   disabled or "", then delivered, failed, died, forgotten, moment of the last delivery (ms), JSON of a gap ("" = none)
local out = {}
for i = 4, #ARGV do
  local keys = keys_of(ARGV[i])
  local oldest, waits = call('ZRANGE', keys.order, 0, 0)[1], ''
  if oldest then waits = int(math.max(0, now - item_of(keys, oldest).queued)) end
  local row = {call('ZCARD', keys.order), call('ZCARD', keys.dead), waits, call('HGET', DISABLED, ARGV[i]) or ''}
  for _, name in ipairs({'delivered', 'failed', 'died', 'forgotten', 'last', 'missed'}) do
    row[#row + 1] = call('HGET', keys.figures, name) or ''
  end
  out[#out + 1] = row
end
return out
