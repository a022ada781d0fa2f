-- Writes the derived data of a chunk of instances again: index members and expiring keys.
--
-- ARGV 7 cursor   8 about how many
-- Returns {next cursor, keys written, members added}
local page = call('HSCAN', INST, ARGV[7], 'COUNT', ARGV[8])
local keys, members = 0, 0
for i = 1, #page[2], 2 do
  local id, row = page[2][i], cjson.decode(page[2][i + 1])
  local deadline = tonumber(call('ZSCORE', LEASES, id) or -1)
  local admin = admin_of(id)
  for _, t in ipairs(index_terms(row, admin)) do members = members + (derive('SADD', INDEX .. t, id) or 0) end
  if deadline >= L and derive('PEXPIREAT', SERVICES .. id, int(deadline + skew)) ~= 1 then
    project(id, row, call('HGET', DOCS, id) or '{}', admin, is_suspect(id), deadline)
    keys = keys + 1
  end
end
if page[1] == '0' then call('HDEL', META, 'repair') end
return finish({page[1], keys, members})
