"""What every service is told by its environment (`EVERGREEN_…`), checked at start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contract.contexts import CONTEXTS
from servicekit.observability import tracing
from servicekit.security.tls import Tls

if TYPE_CHECKING:
    _Targets = BaseSettings
else:
    _Targets = create_model(
        "_Targets",
        __base__=BaseSettings,
        **{
            f"{context}_target": (
                str,
                Field(
                    default="", description=f"Where services reach {context}: unix:PATH, HOST:PORT."
                ),
            )
            for context in CONTEXTS
        },
    )


class ServiceSettings(_Targets):
    """The settings that all services share. Secrets are read from files."""

    model_config = SettingsConfigDict(
        env_prefix="EVERGREEN_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    grpc_listen: str = Field(
        description="Where the gateway reaches the service: unix:PATH, or HOST:PORT with TLS."
    )
    internal_listen: str = Field(description="Where the other services reach it, likewise.")
    http_listen: str = Field(
        default="", description="Where the gateway reaches its HTTP routes, likewise."
    )
    tls_ca_file: Path | None = Field(
        default=None,
        description="The CA of the internal certificates of the gateway and the services.",
    )
    tls_certificate_file: Path | None = Field(
        default=None, description="The service's certificate; its DNS name is the service's name."
    )
    tls_key_file: Path | None = Field(default=None, description="The key of the certificate.")
    ops_listen: str = Field(
        default="127.0.0.1:0",
        description="HOST:PORT of /metrics, /healthz and /readyz; no caller's identity is taken.",
    )
    health_listen: str = Field(
        default="",
        description="HOST:PORT of gRPC's health service alone, for probes without a certificate.",
    )
    database_url: str = Field(
        repr=False, description="PostgreSQL URL of the service's own role, no password."
    )
    database_password_file: Path | None = Field(
        default=None, description="File with the password of the database role."
    )
    database_pool_size: int = Field(default=8, ge=1, le=200, description="Database connections.")
    nats_url: str = Field(
        default="nats://127.0.0.1:4222",
        repr=False,
        description="URL of NATS, tls://HOST:PORT with TLS; of a cluster, those of all servers,"
        " with commas between them.",
    )
    nats_ca_file: Path | None = Field(
        default=None, description="CA of NATS's certificate; the system's when not given."
    )
    nats_user: str = Field(default="", description="NATS user of the service.")
    nats_password_file: Path | None = Field(default=None, description="File with its password.")
    events_stream_bytes: int = Field(
        default=4 << 30,
        ge=1 << 20,
        description="The size of the stream of domain events; beyond it, the oldest are dropped.",
    )
    telemetry_stream_bytes: int = Field(
        default=4 << 30,
        ge=1 << 20,
        description="The size of the stream of devices' events; beyond it, the oldest are dropped.",
    )
    stream_replicas: int = Field(
        default=1, ge=1, le=5, description="Number of NATS servers that keep each stream."
    )
    outbound: bool = Field(
        default=True,
        description="Whether others' servers are connected to: receivers of forwarders,"
        " directories, and providers of single sign-on. False for a copy of an installation that"
        " is only tried.",
    )
    master_key_file: Path | None = Field(
        default=None,
        description="File with the 32-byte key, base64, that seals private keys.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="Format of log lines: JSON for machines, console for people."
    )
    otlp_endpoint: str = Field(
        default="",
        validation_alias=tracing.ENDPOINT,
        description="Where spans go, by OTLP over gRPC: http(s)://HOST[:PORT]. None are recorded"
        " without it.",
    )
    otlp_protocol: str = Field(
        default="", validation_alias=tracing.PROTOCOL, description="grpc, or empty."
    )
    traces_sampler: str = Field(
        default="",
        validation_alias=tracing.SAMPLER,
        description="parentbased_traceidratio, or empty.",
    )
    traces_ratio: str = Field(
        default="",
        validation_alias=tracing.RATIO,
        description="The share of the calls that the gateway lets record, 0.01 when empty; a"
        " service goes by the gateway.",
    )
    drain_seconds: float = Field(
        default=3.0,
        ge=0,
        le=60,
        description="How long a stopping service goes on serving.",
    )
    max_calls: int = Field(
        default=1024,
        ge=1,
        description="Calls in flight, from outside and from other services each; further ones are"
        " refused with a delay.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_file(cls, given: object, info: ValidationInfo) -> object:
        # As Compose sets what is not set; a path of nothing would be the working directory.
        field = cls.model_fields[info.field_name or ""]
        return None if given == "" and field.annotation == Path | None else given

    @model_validator(mode="after")
    def _is_inside_the_walls(self) -> Self:
        files = (self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)
        if any(files) and not all(files):
            raise ValueError("tls_ca_file, tls_certificate_file and tls_key_file belong together")
        for listen in (self.grpc_listen, self.internal_listen, self.http_listen):
            if listen and not listen.startswith("unix:") and self.tls is None:
                raise ValueError(f"on {listen} anyone could say that he is the gateway: give TLS")
        return self

    @model_validator(mode="after")
    def _says_where_spans_go(self) -> Self:
        _ = self.traces
        return self

    @property
    def traces(self) -> tracing.Traces | None:
        """What is recorded of calls, and where it goes; `None` for nothing."""
        said = (self.otlp_endpoint, self.traces_ratio, self.otlp_protocol, self.traces_sampler)
        return tracing.Traces.of_environment(dict(zip(tracing.VARIABLES, said, strict=True)))

    @property
    def tls(self) -> Tls | None:
        """The files of the service's certificate, where it is reached over a network."""
        if self.tls_ca_file and self.tls_certificate_file and self.tls_key_file:
            return Tls(self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)
        return None

    def target(self, context: str) -> str:
        """The internal address of another service."""
        address: str = getattr(self, f"{context}_target")
        if not address:
            raise ValueError(f"EVERGREEN_{context.upper()}_TARGET is not set")
        return address


def read_secret(path: Path | None) -> str:
    """The text of a secret's file, without the line's end; empty when there is no file."""
    return path.read_text(encoding="utf-8").rstrip("\r\n") if path else ""
