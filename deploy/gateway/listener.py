"""The listener: TLS, the two versions of HTTP, and the chain of filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.gateway import (
    access_log,
    auth,
    credentials,
    errors,
    members,
    parts,
    rates,
    routes,
    tracing,
)
from deploy.gateway.api import Method
from deploy.gateway.envoy import (
    Config,
    approved_tls,
    extension,
    header,
    seconds,
    socket_address,
)
from deploy.gateway.limits import KIB, MIB
from deploy.gateway.settings import GatewaySettings
from servicekit.security import mode
from servicekit.security.digests import sha256_hex

CERTIFICATE: Final = "gateway"
"""The secret with the certificate."""

_CONNECTION_BUFFER: Final = 64 * KIB

# For TLS 1.2; the suites of TLS 1.3 are not a choice.
_CIPHERS: Final = [
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
]

# Envoy would trust private addresses to set some of its headers, and would not pass on theirs.
_NOBODY_IS_INTERNAL: Final = {
    "cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]
}

# Who calls, from where, and whether it is recorded, is for the gateway to say. With a client's own
# trace anybody could have every call of his recorded, and put spans into others' traces.
_RESERVED_PREFIXES: Final = ("x-evergreen-", "x-envoy-")
_RESERVED: Final = ("x-request-id", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto",
                    "x-real-ip", "forwarded", "traceparent", "tracestate")  # fmt: skip

# gRPC fails a call with such a name, which HTTP allows; no header of anybody has one. A name
# that ends in -bin has base64 as its value, or the call fails; no service of ours reads one. Names
# that begin with a colon are Envoy's own.
_NOT_FOR_GRPC: Final = "[^:]*[^:a-z0-9._-][^:]*|[^:]*-bin"


def listener(settings: GatewaySettings, methods: Sequence[Method], descriptors: bytes) -> Config:
    """The one listener, for all addresses."""
    first, *others = settings.addresses
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "gateway",
        # Makes an update of the descriptor file an update of the listener.
        "metadata": {"filter_metadata": {"evergreen": {"descriptors": sha256_hex(descriptors)}}},
        "address": socket_address(first, settings.port),
        "additional_addresses": [
            {"address": socket_address(other, settings.port)} for other in others
        ],
        # A port that is taken must fail, not be shared with another copy of the product.
        "enable_reuse_port": False,
        # A herd waits in the kernel, in its order. A handshake costs as much as some calls, so
        # that whoever is in must get his turn after some of them, not after thousands. With too
        # few at a time the kernel's queue runs over, and who is dropped there waits for seconds.
        "tcp_backlog_size": 4096,
        "max_connections_to_accept_per_socket_event": settings.limits.accepted_at_once,
        "per_connection_buffer_limit_bytes": _CONNECTION_BUFFER,
        "listener_filters": [
            extension(
                "envoy.filters.listener.tls_inspector",
                "extensions.filters.listener.tls_inspector.v3.TlsInspector",
            )
        ],
        "listener_filters_timeout": seconds(10),
        "filter_chains": [
            {
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": _tls(settings),
                "transport_socket_connect_timeout": seconds(10),
                "filters": [_http(settings, methods, descriptors)],
            },
            {
                "filter_chain_match": {"transport_protocol": "raw_buffer"},
                "filters": [_in_the_clear()],
            },
        ],
    }


def certificates(settings: GatewaySettings) -> dict[str, tuple[Path, Path]]:
    """The certificates by the name of their secret; the first is for who asks for no known name."""
    first = (settings.certificate_file, settings.private_key_file)
    more = {f"{CERTIFICATE}-{n}": pair for n, pair in enumerate(settings.more_certificates, 2)}
    return {CERTIFICATE: first, **more}


def _tls(settings: GatewaySettings) -> Config:
    return extension(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
                **({} if mode.is_required() else {"cipher_suites": _CIPHERS}),
                **approved_tls(),
            },
            "tls_certificate_sds_secret_configs": [
                {
                    "name": name,
                    "sds_config": {
                        "resource_api_version": "V3",
                        "path_config_source": {"path": str(settings.secret_file(name))},
                    },
                }
                for name in certificates(settings)
            ],
        },
    )


def _http(settings: GatewaySettings, methods: Sequence[Method], descriptors: bytes) -> Config:
    limits = settings.limits
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        codec_type="AUTO",
        common_http_protocol_options={
            "idle_timeout": seconds(limits.idle),
            "max_headers_count": 100,
            # x_evergreen_kind must not be taken for x-evergreen-kind further on.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        # Files have the number of their rows in a trailer, in both versions of HTTP.
        http_protocol_options={"enable_trailers": True},
        http2_protocol_options={
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 256 * KIB,
            "initial_connection_window_size": MIB,
        },
        max_request_headers_kb=limits.header_kib,
        request_headers_timeout=seconds(10),
        # A batch of events on a slow line.
        request_timeout=seconds(120),
        stream_idle_timeout=seconds(60),
        drain_timeout=seconds(5),
        # The client's address is the peer's, or what as many trusted proxies in front say.
        use_remote_address=True,
        xff_num_trusted_hops=settings.trusted_proxies,
        internal_address_config=_NOBODY_IS_INTERNAL,
        early_header_mutation_extensions=[_strip(settings)],
        generate_request_id=True,
        preserve_external_request_id=False,
        always_set_request_id_in_response=True,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        strip_any_host_port=True,
        strip_trailing_host_dot=True,
        server_header_transformation="PASS_THROUGH",
        access_log=access_log.access_logs(settings),
        local_reply_config=errors.local_replies(),
        **({"tracing": tracing.tracing(settings.traces)} if settings.traces else {}),
        http_filters=_filters(settings, methods, descriptors),
        route_config={
            "name": "gateway",
            "virtual_hosts": [routes.virtual_host(settings, methods)],
            # What the script of errors (errors.lua) knows a service's answer by.
            "response_headers_to_add": [header("x-request-id", "%REQ(X-REQUEST-ID)%")],
        },
    )


def _in_the_clear() -> Config:
    """Says that this port speaks HTTPS, in little time and room, and closes."""
    short = seconds(5)
    everything: list[Config] = [{"connect_matcher": {}}, {"prefix": "/"}]
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in_the_clear",
        codec_type="AUTO",
        common_http_protocol_options={
            "idle_timeout": short,
            "max_connection_duration": short,
            "max_requests_per_connection": 1,
        },
        max_request_headers_kb=8,
        request_headers_timeout=short,
        request_timeout=short,
        stream_idle_timeout=short,
        drain_timeout=seconds(1),
        generate_request_id=True,
        always_set_request_id_in_response=True,
        server_header_transformation="PASS_THROUGH",
        local_reply_config=errors.replies_in_the_clear(),
        http_filters=[
            extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")
        ],
        route_config={
            "virtual_hosts": [
                {
                    "name": "in_the_clear",
                    "domains": ["*"],
                    "routes": [
                        {"match": match, "direct_response": {"status": 400}} for match in everything
                    ],
                }
            ]
        },
    )


def _strip(settings: GatewaySettings) -> Config:
    names = _RESERVED if settings.trusted_proxies else (*_RESERVED, "x-forwarded-for")
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[
            *({"remove_on_match": {"key_matcher": {"prefix": p}}} for p in _RESERVED_PREFIXES),
            {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _NOT_FOR_GRPC}}}},
            *({"remove": name} for name in names),
        ],
    )


def _filters(
    settings: GatewaySettings, methods: Sequence[Method], descriptors: bytes
) -> list[Config]:
    """The chain: requests pass it downwards, answers upwards."""
    return [
        *(
            [extension(parts.CORS, "extensions.filters.http.cors.v3.Cors")]
            if settings.cors_origins
            else []
        ),
        _response_headers(),
        extension(parts.GRPC_WEB, "extensions.filters.http.grpc_web.v3.GrpcWeb"),
        errors.error_filter(parts.ERRORS),
        # JSON is limited before the transcoder, which would count differently.
        _buffer(parts.BODY_LIMIT, settings.limits.body),
        members.members_filter(methods, descriptors),
        _transcoder(settings, methods),
        credentials.bearer_filter(),
        # After the transcoder: the path is the RPC's now, however it was written before.
        auth.jwt_filter(settings),
        rates.rate_filter(settings),
        {**_buffer(parts.DEVICE_BODY_LIMIT, settings.limits.body), "disabled": True},
        extension(
            "envoy.filters.http.router",
            "extensions.filters.http.router.v3.Router",
            suppress_envoy_headers=True,
        ),
    ]


def _response_headers() -> Config:
    """The last hand on every answer, the gateway's own included."""
    internal = [{"remove": name} for name in (errors.H_ERROR, errors.H_STATUS, errors.H_BROKEN)]
    return extension(
        "envoy.filters.http.header_mutation",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "response_mutations": [
                *internal,
                *({"remove": name} for name in ("server", "grpc-accept-encoding")),
                {"append": header("strict-transport-security", "max-age=31536000")},
                {"append": header("x-content-type-options", "nosniff")},
                # What says nothing else itself, as the files of the docs do, is for its caller.
                {"append": header("cache-control", "no-store", "ADD_IF_ABSENT")},
            ],
            "response_trailers_mutations": internal,
        },
    )


def _buffer(name: str, size: int) -> Config:
    return extension(name, "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=size)


def _transcoder(settings: GatewaySettings, methods: Sequence[Method]) -> Config:
    services = {m.service for m in methods if not m.rule.agent_form}
    return extension(
        parts.TRANSCODER,
        "extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=str(settings.descriptors_at or settings.descriptors),
        services=sorted(services),
        convert_grpc_status=True,
        print_options={"always_print_primitive_fields": True},
        # As it ignores unknown fields in a body; see members.py.
        ignore_unknown_query_parameters=True,
        # Browsers' URLSearchParams write a space as "+", and a plus sign as "%2B".
        query_param_unescape_plus=True,
        request_validation_options={"reject_unknown_method": True},
        max_request_body_size=2 * settings.limits.body,
        max_response_body_size=settings.limits.response,
    )
