-- The way from slurmctld to the enforcer of Apolo Credits (Lua 5.1, lua-socket).
--
-- slurmctld holds its locks while this runs, so one deadline covers everything, and after a fault nobody
-- is asked for a while. Only an explicit yes lets a job in: an error that left slurm_job_submit would let
-- it in as well, so none does.
local M = {}

local BUDGET_MAX = 0.2      -- seconds; more would be felt by everyone who uses the cluster
local ANSWER_MAX = 65536    -- bytes
local DEPTH_MAX = 16        -- of JSON
local REASON_MAX = 1000     -- bytes shown to the user

-- Settings ------------------------------------------------------------------------------------------

local DEFAULTS = {
  address = "127.0.0.1:9471",   -- of the enforcer: 127.x.x.x:port, or unix:/path
  token_file = "",              -- holds a token of role scheduler
  cluster = "",                 -- as in settings.yaml; "": Slurm's ClusterName
  budget_seconds = "0.15",      -- how long one question may take in all, at most 0.2
  cooldown_seconds = "5",       -- how long nobody is asked after a fault
  on_unreachable = "deny",      -- or allow: what happens to jobs meanwhile
  default_qos = "",             -- QOS of jobs that name none
}

-- Text of `key = value` lines (# starts a comment) as settings; error() naming the line that is wrong.
function M.parse_settings(text)
  local found = {}
  for name, value in pairs(DEFAULTS) do found[name] = value end
  local number = 0
  for line in (text .. "\n"):gmatch("(.-)\r?\n") do
    number = number + 1
    local stripped = line:gsub("^%s*#.*", ""):gsub("%s+#.*$", "")
    if stripped:match("%S") then
      local name, value = stripped:match("^%s*([%w_]+)%s*=%s*(.-)%s*$")
      if not name or DEFAULTS[name] == nil then
        error("line " .. number .. ": not a setting of the credits hook: " .. stripped, 0)
      end
      found[name] = value
    end
  end
  found.budget = tonumber(found.budget_seconds)
  found.cooldown = tonumber(found.cooldown_seconds)
  if not found.budget or not (found.budget > 0 and found.budget <= BUDGET_MAX) then
    error("budget_seconds must be more than 0 and at most " .. BUDGET_MAX, 0)
  end
  if not found.cooldown or not (found.cooldown >= 0 and found.cooldown <= 3600) then
    error("cooldown_seconds must be between 0 and 3600", 0)
  end
  if found.on_unreachable ~= "deny" and found.on_unreachable ~= "allow" then
    error("on_unreachable must be deny or allow", 0)
  end
  found.socket_path = found.address:match("^unix:(/.+)$")
  -- Numbers only: a name would have to be looked up, and that has no deadline.
  found.host, found.port = found.address:match("^(127%.%d+%.%d+%.%d+):(%d+)$")
  if not found.socket_path and not found.host then
    error("address must be 127.x.x.x:port or unix:/path", 0)
  end
  return found
end

-- JSON ----------------------------------------------------------------------------------------------

-- Bytes that are not UTF-8 would make the whole question unreadable: they become U+FFFD.
local function utf8_only(text)
  local parts, at = {}, 1
  while at <= #text do
    local byte = text:byte(at)
    local sequence
    if byte < 0x80 then
      sequence = text:match("^[%z\1-\127]+", at)
    elseif byte >= 0xC2 and byte <= 0xDF then
      sequence = text:match("^[\194-\223][\128-\191]", at)
    elseif byte == 0xE0 then
      sequence = text:match("^\224[\160-\191][\128-\191]", at)
    elseif byte == 0xED then
      sequence = text:match("^\237[\128-\159][\128-\191]", at)
    elseif byte >= 0xE1 and byte <= 0xEF then
      sequence = text:match("^[\225-\239][\128-\191][\128-\191]", at)
    elseif byte == 0xF0 then
      sequence = text:match("^\240[\144-\191][\128-\191][\128-\191]", at)
    elseif byte >= 0xF1 and byte <= 0xF3 then
      sequence = text:match("^[\241-\243][\128-\191][\128-\191][\128-\191]", at)
    elseif byte == 0xF4 then
      sequence = text:match("^\244[\128-\143][\128-\191][\128-\191]", at)
    end
    parts[#parts + 1] = sequence or "\239\191\189"
    at = at + (sequence and #sequence or 1)
  end
  return table.concat(parts)
end

local function quoted(text)
  return '"' .. utf8_only(text):gsub('[%z\1-\31\\"\127]', function(char)
    return string.format("\\u%04x", char:byte())
  end) .. '"'
end

-- Strings, numbers, booleans and tables of them with string keys; keys in order, so that equal is equal.
function M.encode(value)
  local kind = type(value)
  if kind == "string" then return quoted(value) end
  if kind == "boolean" then return tostring(value) end
  if kind == "number" then
    if value ~= value or value >= 2 ^ 53 or value <= -2 ^ 53 then return "null" end
    return string.format("%.14g", value)
  end
  if kind ~= "table" then error("no JSON for " .. kind, 0) end
  local names, parts = {}, {}
  for name in pairs(value) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do parts[#parts + 1] = quoted(name) .. ":" .. M.encode(value[name]) end
  return "{" .. table.concat(parts, ",") .. "}"
end

local ESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function utf8_char(code)
  if code < 0x80 then return string.char(code) end
  if code < 0x800 then return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64) end
  if code < 0x10000 then
    return string.char(0xE0 + math.floor(code / 4096), 0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
  end
  return string.char(0xF0 + math.floor(code / 262144), 0x80 + math.floor(code / 4096) % 64,
    0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
end

local function decode_string(text, at)
  local parts = {}
  while true do
    local plain, stop = text:match('^([^"\\%z\1-\31]*)()', at)
    parts[#parts + 1] = plain
    local char = text:sub(stop, stop)
    if char == '"' then return table.concat(parts), stop + 1 end
    if char ~= "\\" then error("a string without an end", 0) end
    local escape = text:sub(stop + 1, stop + 1)
    if escape == "u" then
      local code = tonumber(text:match("^%x%x%x%x", stop + 2) or error("a bad escape", 0), 16)
      at = stop + 6
      if code >= 0xD800 and code <= 0xDBFF then
        local low = tonumber(text:match("^\\u([dD][c-fC-F]%x%x)", at) or error("half a character", 0), 16)
        code, at = 0x10000 + (code - 0xD800) * 1024 + (low - 0xDC00), at + 6
      elseif code >= 0xDC00 and code <= 0xDFFF then
        error("half a character", 0)
      end
      parts[#parts + 1] = utf8_char(code)
    else
      parts[#parts + 1] = ESCAPED[escape] or error("a bad escape", 0)
      at = stop + 2
    end
  end
end

local decode_value

local function decode_items(text, at, depth, close, keyed)
  local found = {}
  at = text:match("^%s*()", at)
  if text:sub(at, at) == close then return found, at + 1 end
  while true do
    local name = #found + 1
    if keyed then
      if text:sub(at, at) ~= '"' then error("a key is not a string", 0) end
      name, at = decode_string(text, at + 1)
      at = text:match("^%s*:%s*()", at) or error("a key without a value", 0)
    end
    local value
    value, at = decode_value(text, at, depth)
    -- A key said twice could mean two things: such an answer is no answer.
    if keyed and found[name] ~= nil then error("a key said twice", 0) end
    found[name] = value
    local mark
    mark, at = text:match("^%s*([%],}])%s*()", at)
    if mark == close then return found, at end
    if mark ~= "," then error("a list without an end", 0) end
  end
end

function decode_value(text, at, depth)
  if depth > DEPTH_MAX then error("too deep", 0) end
  local char = text:sub(at, at)
  if char == '"' then return decode_string(text, at + 1) end
  if char == "{" then return decode_items(text, at + 1, depth + 1, "}", true) end
  if char == "[" then return decode_items(text, at + 1, depth + 1, "]", false) end
  local word, after = text:match("^(%a+)()", at)
  if word == "true" then return true, after end
  if word == "false" then return false, after end
  if word == "null" then return M.null, after end
  local number
  number, after = text:match("^(%-?%d+%.?%d*[eE]?[-+]?%d*)()", at)
  return tonumber(number) or error("not JSON", 0), after
end

M.null = setmetatable({}, { __tostring = function() return "null" end })

-- A whole JSON text as Lua values, null as M.null; error() for anything else.
function M.decode(text)
  local value, at = decode_value(text, text:match("^%s*()"), 1)
  if text:match("^%s*()", at) ~= #text + 1 then error("more than one value", 0) end
  return value
end

-- HTTP ----------------------------------------------------------------------------------------------

function M.request(settings, token, body)
  local lines = {
    "POST /v1/admission/slurm HTTP/1.0",  -- 1.0: the answer comes whole, and its end is the connection's
    "Host: localhost",
    "Connection: close",
    "Content-Type: application/json",
    "Content-Length: " .. #body,
  }
  if token ~= "" then lines[#lines + 1] = "Authorization: Bearer " .. token end
  return table.concat(lines, "\r\n") .. "\r\n\r\n" .. body
end

-- Status and body of a whole answer; error() for a part of one.
function M.parse_answer(text)
  local status, headers, body = text:match("^HTTP/1%.[01] (%d%d%d)[^\r\n]*(\r\n.-)\r\n\r\n(.*)$")
  if not status then error("an answer that is not HTTP", 0) end
  headers = headers:lower() .. "\r\n"
  local length = headers:match("\r\ncontent%-length:%s*(%d+)%s*\r\n")
  if not length or tonumber(length) ~= #body then error("half an answer", 0) end
  return tonumber(status), body
end

-- Send `request` and read the answer, all within settings.budget seconds by `now`; error() where not.
function M.exchange(open, settings, request, now)
  local deadline = now() + settings.budget
  local connection = open()
  local function timed()
    -- A clock that is set back must not make the deadline later than it was to begin with.
    local left = math.min(deadline - now(), settings.budget)
    if left <= 0 then error("no answer within " .. settings.budget .. " s", 0) end
    connection:settimeout(left, "t")
  end
  local function work()
    timed()
    local ok, fault
    if settings.socket_path then
      ok, fault = connection:connect(settings.socket_path)
    else
      ok, fault = connection:connect(settings.host, tonumber(settings.port))
    end
    if not ok then error(tostring(fault), 0) end
    local sent = 0
    while sent < #request do
      timed()
      local upto, why, partial = connection:send(request, sent + 1)
      sent = upto or partial
      if not upto and why ~= "timeout" then error(tostring(why), 0) end
    end
    local parts, size = {}, 0
    while true do
      timed()
      local chunk, why, partial = connection:receive(4096)
      local got = chunk or partial or ""
      parts[#parts + 1], size = got, size + #got
      if size > ANSWER_MAX then error("too long an answer", 0) end
      if why == "closed" then return table.concat(parts) end
      if not chunk and why ~= "timeout" then error(tostring(why), 0) end
    end
  end
  local ok, result = pcall(work)
  connection:close()
  if not ok then error(result, 0) end
  return result
end

-- Jobs ----------------------------------------------------------------------------------------------

local function set_text(value)
  if type(value) == "string" and value ~= "" then return value end
  return nil
end

-- A number that Slurm was given: its marks for "not set" and "no limit" are far above all that is.
local function set_number(value)
  if type(value) == "number" and value >= 0 and value < 65534 * 4096 and value ~= 65534 and value ~= 65535 then
    return value
  end
  return nil
end

local function default_partition(partitions)
  for name, partition in pairs(partitions or {}) do
    if partition.flag_default == 1 then return name end
  end
  return nil
end

function M.hold_in(comment)
  return (" " .. (comment or "") .. " "):match("%scredits:hold=([%w_.:-]+)%s")
end

-- The comment without our own words, with `word` added.
function M.noted(comment, word)
  local kept = {}
  for part in (comment or ""):gmatch("%S+") do
    if not part:match("^credits:") then kept[#kept + 1] = part end
  end
  local text = (comment or ""):find("credits:", 1, true) and table.concat(kept, " ") or (comment or "")
  if not word then return text end
  return text == "" and word or text .. " " .. word
end

-- What the enforcer is asked: what the job says, else what `record` (a job that is changed) has.
function M.question(settings, cluster, job, record, partitions, uid)
  record = record or {}
  local function pick(name) return set_text(job[name]) or set_text(record[name]) end
  local function size(name) return set_number(job[name]) or set_number(record[name]) end
  local question = {
    scheduler = "slurm",
    cluster = settings.cluster ~= "" and settings.cluster or cluster,
    slurm_cluster = cluster,
    account = pick("account") or set_text(job.default_account) or "",
    user = pick("user_name") or tostring(set_number(job.user_id) or set_number(record.user_id) or uid),
    partition = pick("partition") or default_partition(partitions) or "",
    qos = pick("qos") or set_text(job.default_qos) or settings.default_qos,
    array = pick("array_inx"),
    time_limit_minutes = size("time_limit"),
    nodes = size("min_nodes"),
    tasks = size("num_tasks"),
    tres_per_job = pick("tres_per_job"),
    tres_per_node = pick("tres_per_node") or pick("gres"),
    tres_per_socket = pick("tres_per_socket"),
    tres_per_task = pick("tres_per_task"),
    job_id = set_number(record.job_id),
    array_task = set_number(record.array_task_id),
    replaces_hold = M.hold_in(record.admin_comment),
  }
  return question
end

-- What of a waiting job decides about its price and who pays. Its owner can only lower its time limit.
local PRICED = {
  "account", "partition", "qos", "gres", "tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task",
  "min_nodes", "num_tasks",
}

local JOB_STATE_BASE = 256  -- states below it, flags above

function M.changes_price(job, record)
  if (record.job_state or 0) % JOB_STATE_BASE ~= 0 then return false end  -- not waiting any more
  for _, name in ipairs(PRICED) do
    local wanted = set_text(job[name]) or set_number(job[name])
    if wanted ~= nil and wanted ~= record[name] then return true end
  end
  return false
end

-- The hook ------------------------------------------------------------------------------------------

local function read_all(path)
  local file = io.open(path, "r") or error(path .. " cannot be read", 0)
  local text = file:read("*a")
  file:close()
  return text
end

-- parts: slurm (its table of functions), directory (of credits_hook.conf), socket (lua-socket); for tests
-- also read (path -> text), open (-> connection) and now (-> seconds).
function M.new(parts)
  local slurm, read, now = parts.slurm, parts.read or read_all, parts.now or parts.socket.gettime
  local closed_until = nil
  local hook = {}

  local function open_connection(settings)
    if parts.open then return parts.open(settings) end
    if not settings.socket_path then return parts.socket.tcp() end
    local unix = require("socket.unix")
    return type(unix) == "table" and (unix.stream or unix.tcp)() or unix()
  end

  local function refuse(text)
    slurm.log_user("%s", text)
    return slurm.ESLURM_ACCOUNTING_POLICY
  end

  -- status, decoded answer; error() for everything that is no answer.
  local function ask(settings, question)
    local at = now()
    if closed_until and at < closed_until and closed_until - at <= settings.cooldown then
      error("the enforcer failed to answer a moment ago", 0)
    end
    local ok, status, body = pcall(function()
      local token = settings.token_file == "" and "" or read(settings.token_file):match("^%s*(%S*)")
      local request = M.request(settings, token, M.encode(question))
      local text = M.exchange(function() return open_connection(settings) end, settings, request, now)
      local code, json = M.parse_answer(text)
      if code == 400 or code == 422 then  -- of this job, not of the service
        local read_it, problem = pcall(M.decode, json)
        return code, { reason = read_it and type(problem) == "table" and problem.detail or nil }
      end
      if code ~= 200 then error("HTTP status " .. code, 0) end
      local answer = M.decode(json)
      if type(answer) ~= "table" or type(answer.allowed) ~= "boolean" then error("an answer without a decision", 0) end
      return code, answer
    end)
    closed_until = not ok and now() + settings.cooldown or nil
    if not ok then error(status, 0) end
    return status, body
  end

  -- note(word): keeps a word of ours with the job.
  local function decide(settings, question, note)
    local ok, status, answer = pcall(ask, settings, question)
    if not ok then
      slurm.log_error("credits: %s", tostring(status))
      if settings.on_unreachable == "allow" then
        note("credits:unchecked")
        return slurm.SUCCESS
      end
      return refuse("Credits cannot be checked right now, so no job is accepted. Please try again in a minute.")
    end
    if status == 200 and answer.allowed == true then
      if type(answer.hold_id) == "string" and answer.hold_id ~= "" then note("credits:hold=" .. answer.hold_id) end
      return slurm.SUCCESS
    end
    local reason = type(answer.reason) == "string" and answer.reason ~= "" and answer.reason
      or status == 200 and "There are not enough credits for this job."
      or "Credits cannot be checked for this job: what it asks for is not understood."
    return refuse((reason:gsub("[%z\1-\9\11-\31\127]", " "):sub(1, REASON_MAX)))
  end

  -- Whatever goes wrong in here refuses: slurmctld lets a job in when a script fails.
  local function guarded(work)
    local ok, result = pcall(work)
    if ok and type(result) == "number" then return result end
    pcall(slurm.log_error, "credits: the hook failed: %s", tostring(result))
    pcall(slurm.log_user, "%s", "Credits cannot be checked: the hook is not set up right. Please tell the administrators.")
    return slurm.ESLURM_ACCOUNTING_POLICY
  end

  local function settings_now()
    return M.parse_settings(read(parts.directory .. "/credits_hook.conf"))
  end

  function hook.submit(job, partitions, uid)
    return guarded(function()
      local settings = settings_now()
      if job.admin_comment then job.admin_comment = M.noted(job.admin_comment) end
      local question = M.question(settings, slurm.CLUSTER_NAME or "", job, nil, partitions, uid)
      return decide(settings, question, function(word) job.admin_comment = M.noted(job.admin_comment, word) end)
    end)
  end

  function hook.modify(job, record, partitions, uid)
    return guarded(function()
      -- Whoever may change the comment does not lose the hold with it.
      local word = (record.admin_comment or ""):match("credits:%S+")
      if job.admin_comment and word then job.admin_comment = M.noted(job.admin_comment, word) end
      if not M.changes_price(job, record) then return slurm.SUCCESS end
      local settings = settings_now()
      local question = M.question(settings, slurm.CLUSTER_NAME or "", job, record, partitions, uid)
      -- Slurm refuses a user's change with a comment in it: the enforcer keeps the hold's id, or knows the job's.
      local verdict = decide(settings, question, function() end)
      -- Without slurmdbd slurmctld takes an errno that our socket left behind for a fault of the change; looking
      -- a user up clears it.
      local _ = job.user_name
      return verdict
    end)
  end

  return hook
end

return M
