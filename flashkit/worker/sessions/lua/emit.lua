-- KEYS: 1 events. ARGV: most events, lifetime ms, bodies
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'b', ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'OK'}
