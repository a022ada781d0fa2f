-- Lays down an import that is too much for one call, and commits it. Before the commit nobody sees
-- anything of it, and it goes by itself; behind it, it is carried out to its end by import.lua, whoever
-- calls that.
--
-- ARGV 7 name of the import   8 how long the parts are kept without a commit, ms
--      9 "part": 10 texts as import.lua reads them, joined by NUL
--        "commit": 10 how many parts there have to be   11 the reason that the marker is to give
-- Returns {"staged"} | {"committed"} | {"busy"}: another one is not at its end | {"lost"}: parts are missing
local stored = answered()
if stored then return stored end
local parts = beside('import:' .. ARGV[7])
if ARGV[9] == 'part' then
  call('RPUSH', parts, ARGV[10])
  call('PEXPIRE', parts, ARGV[8])
  return answer({'staged'})
end
if call('HEXISTS', META, 'import') == 1 then return answer({'busy'}) end
if call('LLEN', parts) ~= tonumber(ARGV[10]) then return answer({'lost'}) end
call('PERSIST', parts)
call('HSET', META, 'import', ARGV[7], 'imported', '0\0000', 'import_reason', ARGV[11], 'import_by', BY)
return answer({'committed'})
