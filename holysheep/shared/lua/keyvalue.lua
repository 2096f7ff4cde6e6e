-- One command on one key. KEYS: the key. ARGV: the command, then its arguments.
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
