-- Takes away what the truth does not back.
--
-- ARGV 7 "index": 8 term, 9… members of its set; drops those whose row lacks the term
--        "keys": 8… ids that have an expiring key; drops the keys of instances that are gone
--        "tombstones": 8 retention ms, 9… ids; forgets the old ones, with their maintenance
-- Returns {how many were dropped}
local what, dropped = ARGV[7], 0
if what == 'index' then
  for i = 9, #ARGV do
    local row, backed = get_row(ARGV[i]), false
    if row then
      for _, t in ipairs(index_terms(row, admin_of(ARGV[i]))) do backed = backed or t == ARGV[8] end
    end
    if not backed then dropped = dropped + (derive('SREM', INDEX .. ARGV[8], ARGV[i]) or 0) end
  end
elseif what == 'keys' then
  for i = 8, #ARGV do
    if call('HEXISTS', INST, ARGV[i]) == 0 then dropped = dropped + (derive('DEL', SERVICES .. ARGV[i]) or 0) end
  end
elseif what == 'tombstones' then
  for i = 9, #ARGV do
    local raw = call('HGET', TOMBSTONES, ARGV[i])
    if raw and now - cjson.decode(raw).at > tonumber(ARGV[8]) then
      call('HDEL', TOMBSTONES, ARGV[i])
      if call('HEXISTS', INST, ARGV[i]) == 0 then
        call('HDEL', ADMIN, ARGV[i])
        call('ZREM', UNTIL, ARGV[i])
      end
      dropped = dropped + 1
    end
  end
end
return finish({dropped})
