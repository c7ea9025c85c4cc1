"""The scripts of a lock, in Lua: each of them reads a lock's key in Redis and changes it in one step.

ARGV begins with the token of the holder. Those that begin with reading return 0 when another holder has the lock.
"""

# Returns the token, or false, or '' for a key of another type: the lock is not ours then.
_READ = """
local function read()
  local token = redis.pcall('GET', KEYS[1])
  if type(token) ~= 'table' then return token end
  if string.find(token.err, 'WRONGTYPE', 1, true) then return '' end
  error(token.err, 0)
end
"""
RENEW = (
    _READ
    + """
if read() ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
)
RELEASE = (
    _READ
    + """
if read() ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
)
TAKE_OVER = (
    _READ
    + """
if read() ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
)
# ARGV: the usual time to live, and the longest (ms). Deletes a key of another type, and limits a time to live.
# Returns what was wrong, or ''.
PUT_ASIDE = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return '' end
if kind ~= 'string' then
  redis.call('DEL', KEYS[1])
  return 'it is a ' .. kind .. ', not a string'
end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[2]) then return '' end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return left < 0 and 'it never expires' or 'it expires in more than a day'
"""
