-- End a session, or all of a person.
--
-- KEYS    1 a session, or what sessions of a person have to carry
-- ARGV    1 '' ends the session; else what they have to carry from now on, 2 for how long (ms)
-- Returns 'ended'. It writes whenever it is called: who waits for the disk needs no other write to wait for.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ended'
