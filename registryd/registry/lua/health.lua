-- What is known of the health of instances beyond their rows, as of now.
--
-- ARGV 7… ids
-- Returns for each: what the last probe found, its row in checkstate, its latest transitions (JSON
--   array, oldest first), what was discovered; each "" where there is nothing
local out = {}
for i = 7, #ARGV do
  for _, key in ipairs({beside('findings'), CHECKSTATE, beside('transitions'), beside('discovered')}) do
    out[#out + 1] = call('HGET', key, ARGV[i]) or ''
  end
end
return out
