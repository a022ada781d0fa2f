-- Takes a subscription away with all that waits for it.
--
-- ARGV 4 id   5 history entry (JSON)
-- Returns {"dropped"} | {"unknown"}
if call('HDEL', HOOKS, ARGV[4]) == 0 then return {'unknown'} end
call('ZREM', READY, ARGV[4])
call('HDEL', DISABLED, ARGV[4])
for _, key in pairs(keys_of(ARGV[4])) do call('UNLINK', key) end
call('HINCRBY', STATE, 'version', 1)
record('', ARGV[5])
return {'dropped'}
