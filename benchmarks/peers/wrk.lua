-- Plays requests from files: each a line with its length, and its bytes behind that.
-- Arguments: "once" or "again", then the files. With "again" they are played from the
-- start when they are used up, with "once" the run ends there: a sealed request that
-- comes twice is refused. The result is one line of JSON.

local ffi = require("ffi")
ffi.cdef[[int kill(int pid, int sig); int getpid(void);]]
local SIGINT = 2
local HARMLESS = "GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

local files, again, current, handle = {}, false, 0, nil

function init(arguments)
  again = arguments[1] == "again"
  for i = 2, #arguments do files[#files + 1] = arguments[i] end
end

local function length()
  while true do
    local line = handle and handle:read("*l")
    if line then return tonumber(line) end
    if handle and again and #files == 1 then
      handle:seek("set", 0)
    else
      if handle then handle:close() end
      current = current + 1
      if current > #files then
        if not again then return nil end
        current = 1
      end
      handle = assert(io.open(files[current], "rb"))
    end
  end
end

local ended = false

function request()
  local size = not ended and length()
  if size then return handle:read(size) end
  if not ended then
    ended = true
    -- The main thread sleeps until the run's time is over, or until a signal comes.
    ffi.C.kill(ffi.C.getpid(), SIGINT)
  end
  wrk.thread:stop()
  return HARMLESS
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"duration_us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50),
    latency:percentile(99), latency.max, errors.status, errors.connect, errors.read,
    errors.write, errors.timeout))
end
