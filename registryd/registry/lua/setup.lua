-- Claims an empty store for this deployment, or tells whose it is.
--
-- ARGV 7 schema   8 deployment to use when there is none   9 partitions
-- Returns {schema, deployment, partitions} as stored
call('HSETNX', META, 'schema', ARGV[7])
call('HSETNX', META, 'deployment', ARGV[8])
call('HSETNX', META, 'partitions', ARGV[9])
return call('HMGET', META, 'schema', 'deployment', 'partitions')
