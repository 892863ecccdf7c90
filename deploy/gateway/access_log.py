"""The access log: JSON lines without queries, cookies or tokens."""

from __future__ import annotations

from typing import Final

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

_OUR_FAULT: Final = ["UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]


def access_logs(settings: GatewaySettings) -> list[Config]:
    """Where requests are logged; nowhere, if so set."""
    if settings.access_log == "off":
        return []
    log = extension(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=settings.access_log_file,
        log_format={"json_format": _FIELDS, "omit_empty_values": True},
    )
    if settings.access_log == "errors":
        log["filter"] = _failed_here()
    return [log]


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
