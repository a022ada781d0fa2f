-- Takes instances away at their own or an operator's wish; all of them or, on a mismatch, none.
--
-- ARGV 7 incarnation ("" = any)   8 expected revision ("" = any)   9 reason   10… ids
-- Returns {"removed", epoch, rev of the last, n} | {"unknown"} when none is there
--   | {"superseded", incarnation} | {"mismatch"}
local stored = answered()
if stored then return stored end
local rows, present = {}, 0
for i = 10, #ARGV do
  local row = get_row(ARGV[i])
  if row then
    if ARGV[7] ~= '' and ARGV[7] ~= row.inc then return {'superseded', row.inc} end
    if not revision_matches(ARGV[8], row) then return {'mismatch'} end
    if not rows[ARGV[i]] then present = present + 1 end
    rows[ARGV[i]] = row
  end
end
if present == 0 then return answer({'unknown'}) end
local rev
for i = 10, #ARGV do
  local row = rows[ARGV[i]]
  if row then
    rev = remove(ARGV[i], row, 'service:unregistered', ARGV[9])
    rows[ARGV[i]] = nil
  end
end
commit_clock()
return finish(answer({'removed', epoch, rev, present}))
