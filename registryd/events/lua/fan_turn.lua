-- Asks for the turn to carry changes from the stream into history and queues. One node has it at a time,
-- and loses it when it does not ask again in time.
--
-- ARGV 4 node   5 how long a turn lasts, ms
-- Returns {"mine" or "another's", cursor ("" when nothing was carried yet), version of the subscriptions}
local state = call('HMGET', STATE, 'turn', 'until', 'cursor', 'version')
local free = not state[1] or state[1] == ARGV[4] or tonumber(state[2]) < now
  -- A clock that was set back must not keep everybody waiting.
  or tonumber(state[2]) > now + tonumber(ARGV[5])
if free then call('HSET', STATE, 'turn', ARGV[4], 'until', int(now + tonumber(ARGV[5]))) end
return {free and 'mine' or "another's", state[3] or '', state[4] or '0'}
