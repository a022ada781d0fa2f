-- Pauses or resumes all probing, or tells whether it goes on.
--
-- ARGV 7 "on", "paused", or "" to change nothing
-- Returns {"on" or "paused"}
local is = call('HGET', META, 'probing') or 'on'
if ARGV[7] ~= '' and ARGV[7] ~= is then
  commit_clock()
  is = ARGV[7]
  if is == 'paused' then call('HSET', META, 'probing', is)
  else
    call('HDEL', META, 'probing')
    call('HSET', META, 'resumed', int(L))
  end
end
return {is}
