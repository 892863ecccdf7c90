"""The access log: JSON lines without queries, cookies or tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from deploy.gateway.envoy import Config, extension, header_is
from deploy.gateway.settings import GatewaySettings
from servicekit.call import H_SUBJECT

_FIELDS: Final = {
    "time": "%START_TIME%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
    "path": "%PATH(NQ:ORIG_OR_PATH)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "upstream": "%UPSTREAM_CLUSTER%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "subject": f"%REQ({H_SUBJECT.upper()})%",
}

FORMER_NAME: Final = "former_name"
"""The member of a line that is there because a call came by an old name."""
_FORMER_FIELDS: Final = {
    "time": "%START_TIME%",
    FORMER_NAME: "%REQ(:AUTHORITY)%",
    "path": "%PATH(NQ:ORIG_OR_PATH)%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "agent": "%REQ(USER-AGENT)%",
    "subject": f"%REQ({H_SUBJECT.upper()})%",
}

_OUR_FAULT: Final = ["UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]


def access_logs(settings: GatewaySettings) -> list[Config]:
    """Where requests are logged; nowhere, if so set."""
    logs = []
    if settings.access_log != "off":
        logs.append(_log(settings, _FIELDS))
    if settings.access_log == "errors":
        logs[0]["filter"] = _failed_here()
    # Envoy has taken the port away: of an address that differs by it alone nobody can tell.
    own = urlsplit(settings.public_url).hostname
    if hosts := {urlsplit(url).hostname or "" for url in settings.former_public_urls} - {own}:
        # A line of its own for what comes by an old name: who still has to be told of the new one.
        # Only these calls pay for it.
        by_old_name = {"header_filter": {"header": _has_host(hosts)}}
        logs.append({**_log(settings, _FORMER_FIELDS), "filter": by_old_name})
    return logs


def _log(settings: GatewaySettings, fields: Mapping[str, str]) -> Config:
    return extension(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=settings.access_log_file,
        log_format={"json_format": dict(fields), "omit_empty_values": True},
    )


def _has_host(hosts: Iterable[str]) -> Config:
    pattern = f"(?i)({'|'.join(sorted(map(re.escape, hosts)))})(:[0-9]+)?"
    return {"name": ":authority", "string_match": {"safe_regex": {"regex": pattern}}}


def _failed_here() -> Config:
    # A failed gRPC call is an HTTP 200. Only gRPC's own requests are asked for their status: to a
    # plain 200 without one, such as every device call in JSON, Envoy gives the status UNKNOWN.
    is_grpc = {"header_filter": {"header": header_is("content-type", prefix="application/grpc")}}
    grpc = {"grpc_status_filter": {"statuses": _OUR_FAULT}}
    failed_grpc = {"and_filter": {"filters": [_status("EQ", 200), is_grpc, grpc]}}
    return {"or_filter": {"filters": [_status("GE", 500), failed_grpc]}}


def _status(comparison: str, status: int) -> Config:
    value = {"default_value": status, "runtime_key": "evergreen.unused"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}
