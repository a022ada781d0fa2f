-- Writes a subscription, new or changed, and who did it.
--
-- ARGV 4 id   5 subscription (JSON)   6 what it was as the caller knows it, "" for a new one
--      7 JSON of why it is disabled, "" to enable it, "keep"   8 history entry (JSON)   9 most subscriptions
-- Returns {"put"} | {"full"} | {"unknown"} | {"changed"}
local before = call('HGET', HOOKS, ARGV[4])
if ARGV[6] == '' then
  if call('HLEN', HOOKS) >= tonumber(ARGV[9]) then return {'full'} end
elseif not before then return {'unknown'}
elseif before ~= ARGV[6] then return {'changed'} end
call('HSET', HOOKS, ARGV[4], ARGV[5])
if ARGV[7] == '' then call('HDEL', DISABLED, ARGV[4])
elseif ARGV[7] ~= 'keep' then call('HSET', DISABLED, ARGV[4], ARGV[7]) end
call('HINCRBY', STATE, 'version', 1)
set_ready(ARGV[4], keys_of(ARGV[4]))
record('', ARGV[8])
return {'put'}
