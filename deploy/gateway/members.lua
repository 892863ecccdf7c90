local HEADER = "{{header}}"
local byte, find, sub = string.byte, string.find, string.sub

-- The messages: a member's name leads to its message, to "b" where true or false has to stand, and to
-- false where the transcoder knows better. [1] is what every name of a map leads to, [2] what stands
-- in a list.
local M = {}
{{messages}}
-- The calls by their paths: "*" is a variable segment, [1] has the messages by HTTP method.
-- false is a call whose unknown names are ignored.
local CALLS = {{calls}}

local GRPCS_OWN = {"grpc-accept-encoding", "grpc-encoding", "grpc-timeout"}
local MOST, LONGEST, DEEPEST = 8, 100, 200
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t"}

local function call_at(node, segments, at, verb)
  local segment = segments[at]
  if segment == nil then return node[1] and node[1][verb] end
  local found
  if node[segment] then found = call_at(node[segment], segments, at + 1, verb) end
  if found == nil and node["*"] then found = call_at(node["*"], segments, at + 1, verb) end
  if found == nil and node["**"] then found = call_at(node["**"], {}, 1, verb) end
  return found
end

local function note(found, where, name)
  if #found == MOST then return end
  local short = name:sub(1, LONGEST):gsub("[^%w_.%[%]-]", function(c)
    return string.format("%%%02X", c:byte())
  end)
  found[#found + 1] = where .. ":" .. short
end

local function unescaped(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- The query without parameters that have no value; notes those that no field has.
local function check_query(query, message, found)
  local kept = {}
  for parameter in query:gmatch("[^&]+") do
    local name, value = parameter:match("^([^=]*)=?(.*)$")
    if value ~= "" and message then
      local node = message
      for part in (name .. "."):gmatch("([^.]*)%.") do
        if type(node) == "table" then node = node[unescaped(part)] else node = nil end
      end
      if node == nil then note(found, "q", unescaped(name)) end
    end
    if value ~= "" then kept[#kept + 1] = parameter end
  end
  return table.concat(kept, "&")
end

local function member_name(text)
  if not find(text, "\\", 1, true) then return text end
  -- In one pass: what an escaped backslash stands before is no escape.
  return (text:gsub("\\(.)(%x?%x?%x?%x?)", function(c, hex)
    if c ~= "u" then return (ESCAPES[c] or c) .. hex end
    local low = hex:match("^00([0-7]%x)$")
    return low and string.char(tonumber(low, 16))
  end))
end

-- The path of the member or the item that is being read.
local function path_to(names, depth)
  local path = ""
  for level = 2, depth + 1 do
    local step = names[level]
    if type(step) == "number" then
      path = path .. "[" .. step .. "]"
    elseif step then
      path = path .. (path == "" and "" or ".") .. step
    end
  end
  return path
end

-- Notes what stands where true or false has to, or a list.
local function check_type(node, is_bool, found, names, depth)
  if node == "b" then
    if not is_bool then note(found, "tb", path_to(names, depth)) end
  elseif node[2] ~= nil then
    note(found, "tl", path_to(names, depth))
  end
end

-- What may come next.
local VALUE, FIRST_VALUE, NAME, FIRST_NAME, COLON, AFTER = 1, 2, 3, 4, 5, 6

-- Where the string that begins at `at` ends, and the next backslash that is known.
local function string_end(text, at, escape)
  local from, stop = at + 1, find(text, '"', at + 1, true)
  while stop do
    if escape < from then
      escape = byte(text, from) == 92 and from or find(text, "\\", from, true) or #text + 1
    end
    if escape > stop then return stop, escape end
    from = escape + 2
    if stop < from then
      stop = byte(text, from) == 34 and from or find(text, '"', from, true)
    end
  end
end

-- Goes through a text as RFC 8259 has it, once; notes members that no field has, and those of two
-- types that the transcoder does not insist on: it takes "yes" and "0" for true and false, and
-- what stands alone for a list of one. Answers false when it is not JSON. What stands in a string
-- or a number the transcoder checks.
local function check_body(text, message, found)
  local size, at, depth, expect, escape = #text, 1, 0, VALUE, 0
  local nodes, names, is_array = {[0] = false}, {}, {}
  local node = message
  while at <= size do
    local c = byte(text, at)
    if c == 32 or c == 10 or c == 13 or c == 9 then
      at = at + 1
    elseif c == 34 then
      local stop
      stop, escape = string_end(text, at, escape)
      if not stop then return false end
      if expect == NAME or expect == FIRST_NAME then
        expect = COLON
        local inside = nodes[depth]
        if inside then
          local name = member_name(sub(text, at + 1, stop - 1))
          node = inside[name]
          if node == nil then node = inside[1] end
          names[depth + 1] = name
          if node == nil then
            note(found, "b", path_to(names, depth))
            node = false
          end
        end
      elseif expect <= FIRST_VALUE then
        expect = AFTER
        if node then check_type(node, false, found, names, depth) end
      else
        return false
      end
      at = stop + 1
    elseif c == 44 then
      if expect ~= AFTER or depth == 0 then return false end
      if is_array[depth] then
        expect, node = VALUE, nodes[depth]
        if node then names[depth + 1] = names[depth + 1] + 1 end
      else
        expect = NAME
      end
      at = at + 1
    elseif c == 58 then
      if expect ~= COLON then return false end
      expect, at = VALUE, at + 1
    elseif c == 123 or c == 91 then
      if expect > FIRST_VALUE or depth == DEEPEST then return false end
      if node then
        if c == 123 or node == "b" then check_type(node, false, found, names, depth) end
        if node == "b" then
          node = false
        elseif c == 91 or node[2] ~= nil then
          node = node[2] or false
        end
      end
      depth = depth + 1
      nodes[depth], is_array[depth] = node, c == 91
      names[depth + 1] = c == 91 and 0
      expect, at = c == 91 and FIRST_VALUE or FIRST_NAME, at + 1
    elseif c == 125 or c == 93 then
      if depth == 0 or is_array[depth] ~= (c == 93)
        or expect ~= AFTER and expect ~= (c == 93 and FIRST_VALUE or FIRST_NAME) then
        return false
      end
      depth, expect, at = depth - 1, AFTER, at + 1
    else
      if expect > FIRST_VALUE then return false end
      local first = at
      while c and (c >= 48 and c <= 57 or c >= 97 and c <= 122
        or c == 43 or c == 45 or c == 46 or c == 69) do
        at = at + 1
        c = byte(text, at)
      end
      c = byte(text, first)
      if not (c == 45 or c >= 48 and c <= 57) then
        local word = sub(text, first, at - 1)
        if word ~= "true" and word ~= "false" and word ~= "null" then return false end
        if node and word ~= "null" then check_type(node, true, found, names, depth) end
      elseif node then
        check_type(node, false, found, names, depth)
      end
      expect = AFTER
    end
  end
  return depth == 0 and expect == AFTER
end

function envoy_on_request(request)
  local headers = request:headers()
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  local segments = {}
  for segment in path:gmatch("[^/]+") do segments[#segments + 1] = segment end
  local message = call_at(CALLS, segments, 1, headers:get(":method"))
  -- Of a call in JSON they would end up in the RPC that is made of it, which they do not describe.
  for _, name in ipairs(GRPCS_OWN) do headers:remove(name) end
  -- What the service is told unless this comes to its end.
  headers:replace(HEADER, "unread")
  local found = {}
  if query ~= "" then
    local kept = check_query(query, message, found)
    if kept ~= query then
      headers:replace(":path", kept == "" and path or path .. "?" .. kept)
    end
  end
  if message == nil then return end
  if message then
    local body = request:body()
    if body and body:length() > 0
      and not check_body(body:getBytes(0, body:length()), message, found) then
      found = {"invalid"}
    end
    headers = request:headers()
  end
  if #found == 0 then
    headers:remove(HEADER)
  else
    headers:replace(HEADER, table.concat(found, ","))
  end
end
