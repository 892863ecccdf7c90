local NAMES = {{names}}
local RULES = {{rules}}

-- What the transcoder says of a request that fits no message, in words for people: it tells of the
-- library's types, in several lines, with a part of the body.
local function words(text)
  local field, kind = text:match("^([%w_%.%[%]]*): invalid value .* for type ([%w_%./]+)$")
  if field ~= nil then
    if field == "" then
      return kind:match("^[%w_]+$"), "an object stands where one value is needed"
    end
    return field, RULES[kind] or "this is no value of its kind"
  end
  local has = function(part) return text:find(part, 1, true) ~= nil end
  if has("Root element") then return nil, "the body has to be a JSON object" end
  if has("cannot start list") then return nil, "a list stands where one value is needed" end
  if has("too deep") then return nil, "the body is nested too deeply" end
  if has("UTF-8") then return nil, "the body is not UTF-8" end
  if has("surrogate") then return nil, "the body is not valid JSON: half of a surrogate pair" end
  if has("Unexpected end") then return nil, "the body is not valid JSON: it ends too early" end
  return nil, "the body is not valid JSON"
end

local function wrong_request(body, id)
  local field, rule = words(body:match('"message":"(.*)","requestId":') or "")
  local message, details = rule, ""
  if field ~= nil then
    field = field:gsub("_(%l)", string.upper)
    message = field .. ": " .. rule
    details = string.format(',{"@type":"type.googleapis.com/google.rpc.BadRequest",' ..
      '"fieldViolations":[{"field":"%s","description":"%s"}]}', field, rule)
  end
  return string.format(
    '{"code":3,"status":"INVALID_ARGUMENT","message":"%s","error":"%s","details":[' ..
    '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"%s","domain":"{{domain}}",' ..
    '"metadata":{}}%s],"requestId":"%s"}',
    message, message, field and "INVALID_FIELD" or "INVALID_BODY", details, id)
end

function envoy_on_response(response)
  local headers = response:headers()
  local is_json = headers:get("content-type") == "application/json"
  if not is_json then return end
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  if tonumber(headers:get(":status")) < 400 then return end
  local body = response:body(true)
  -- What was read before the body came cannot be used after.
  headers = response:headers()
  local trailers = response:trailers()
  local function sent(name)
    return headers:get(name) or (trailers and trailers:get(name))
  end
  local answer = sent("{{error_header}}")
  if headers:get("{{broken_header}}") ~= nil then
    answer = wrong_request(body:getBytes(0, body:length()), headers:get("x-request-id") or "")
  elseif answer == nil then
    -- What the transcoder wrote; the gateway's own answers, complete already, look different.
    local text = body:getBytes(0, body:length())
    local code, message = text:match('^{"code":(%d+),"message":(".-"),"details":%[')
    if code == nil then return end
    if message:find("Illegal header", 1, true) ~= nil then
      -- The gRPC library below a service takes fewer names of headers than HTTP has.
      code, message = "3", '"a header has a name or a value that is not allowed; send it without"'
      headers:replace(":status", "400")
    end
    answer = string.format(
      '{"code":%s,"status":"%s","message":%s,"error":%s,"details":[],"requestId":"%s"}',
      code, NAMES[tonumber(code)] or "UNKNOWN", message, message, headers:get("x-request-id") or "")
  end
  local delay = sent("retry-after")
  if delay ~= nil then
    headers:replace("retry-after", delay)
  end
  local status = sent("{{status_header}}")
  if status ~= nil then
    headers:replace(":status", status)
  end
  headers:replace("content-length", body:setBytes(answer))
end
