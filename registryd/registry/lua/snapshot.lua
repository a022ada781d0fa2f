-- One chunk of everything, for a view that starts. Chunks are taken while writes go on; whoever reads
-- them follows the stream from the revision of the first chunk, and the newer version of a row wins.
--
-- ARGV 7 cursor   8 about how many
-- Returns {next cursor, epoch, rev, then for each instance: id, row, document, admin, suspect ("1" or "")}
local page = call('HSCAN', INST, ARGV[7], 'COUNT', ARGV[8])
local out = {page[1], meta[3] or '0', meta[4] or '0'}
for i = 1, #page[2], 2 do
  local id = page[2][i]
  out[#out + 1] = id
  out[#out + 1] = page[2][i + 1]
  out[#out + 1] = call('HGET', DOCS, id) or '{}'
  out[#out + 1] = admin_of(id)
  out[#out + 1] = is_suspect(id) and '1' or ''
end
return out
