"""Audit's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from auditlog.notes import NoteError
from auditlog.witnesses import Policy
from servicekit.keys.settings import KeySettings
from servicekit.outgoing.addresses import Rules, read_allowed, read_denied
from servicekit.outgoing.guard import Proxy
from servicekit.texts import email_fault, normal_email

_MOST_ADDRESSES: Final = 10


class AuditSettings(KeySettings):
    """The settings of the audit service; it needs the master key, for the key of checkpoints and
    for what forwarders keep secret."""

    public_url: str = Field(
        default="",
        description="The address of the installation; its host is what messages of forwarders come"
        " from.",
    )
    forward_private: Literal["root", "all", "none"] = Field(
        default="root",
        description="Whose forwarders may connect to private addresses: those of the root tenant,"
        " of all tenants, or nobody's.",
    )
    forward_allow: str = Field(
        default="",
        description="What forwarders may connect to whatever else forbids it: HOST:PORT or"
        " CIDR:PORT, with commas between them.",
    )
    forward_deny: str = Field(
        default="",
        description="Networks that forwarders never connect to, unless EVERGREEN_FORWARD_ALLOW"
        " names them: CIDRs, with commas between them.",
    )
    forward_proxy: str = Field(
        default="",
        description="What forwarders reach public addresses through, by CONNECT: http://HOST:PORT.",
    )
    forwarders_per_tenant: int = Field(
        default=10, ge=0, le=100, description="Forwarders that a tenant may have."
    )

    audit_stdout: bool = Field(
        default=False,
        description="Whether each entry is written to standard output, too: one line of JSON.",
    )

    audit_origin: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9.-]*$",
        max_length=253,
        description="The host that checkpoints of the audit log are named by, when there are none"
        " yet; that of EVERGREEN_PUBLIC_URL when not given.",
    )
    audit_checkpoint_mail: str = Field(
        default="",
        description="Who gets the newest checkpoint of the tree over all entries by mail, once a"
        " day: at most 10 addresses, with commas between them.",
    )
    audit_log_public: bool = Field(
        default=False,
        description="Whether anyone may read, without a token, checkpoints and hashes of the tree"
        " over all entries, which tell how many entries there are and nothing of them.",
    )
    audit_witnesses_file: Path | None = Field(
        default=None,
        description="A file with the witnesses of the tree over all entries, and how many of them"
        " have to sign (C2SP tlog-policy). None are asked when not given.",
    )
    audit_entry_format: Literal["v1", "v2"] = Field(
        default="v2",
        description="The format of new entries of the audit log. v2 has a salt, and can be"
        " redacted; 0.1.0 cannot verify it.",
    )

    report_days: int = Field(
        default=400, ge=1, le=3650, description="For how many days reports are kept."
    )
    report_mib: int = Field(
        default=512,
        ge=1,
        le=2047,
        description="How large all files of a report may be, in MiB.",
    )
    reports_mib_per_tenant: int = Field(
        default=2048,
        ge=1,
        description="How much reports of a tenant may hold, in MiB; beyond it, no more are made.",
    )
    reports_mib: int = Field(
        default=20480,
        ge=1,
        description="How much all reports may hold, in MiB; beyond it, no more are made.",
    )

    @model_validator(mode="after")
    def _says_whom(self) -> Self:
        _ = self.forward_rules, Proxy.read(self.forward_proxy), self.witnesses
        for address in self.checkpoint_addresses:
            if (fault := email_fault(address)) is not None:
                raise ValueError(f"EVERGREEN_AUDIT_CHECKPOINT_MAIL: {address[:60]} {fault}")
        if len(self.checkpoint_addresses) > _MOST_ADDRESSES:
            raise ValueError("EVERGREEN_AUDIT_CHECKPOINT_MAIL: at most 10 addresses")
        return self

    @property
    def checkpoint_addresses(self) -> tuple[str, ...]:
        """Who gets the checkpoint of the day."""
        return tuple(
            normal_email(one) for one in self.audit_checkpoint_mail.split(",") if one.strip()
        )

    @property
    def witnesses(self) -> Policy | None:
        """Who is asked to sign checkpoints.

        Raises:
            ValueError: the file cannot be read, or is no such file.
        """
        if self.audit_witnesses_file is None:
            return None
        try:
            policy = Policy.read(self.audit_witnesses_file.read_text(encoding="utf-8"))
            policy.check_asked()
        except OSError as error:
            raise ValueError(f"EVERGREEN_AUDIT_WITNESSES_FILE: {error.strerror}") from error
        except (NoteError, UnicodeDecodeError) as broken:
            raise ValueError(f"EVERGREEN_AUDIT_WITNESSES_FILE: {broken}") from broken
        return policy

    @property
    def forward_rules(self) -> Rules:
        """Whom forwarders may connect to."""
        if not self.outbound:
            return Rules("none", (), read_denied("0.0.0.0/0,::/0"), "EVERGREEN_OUTBOUND")
        return Rules(
            self.forward_private,
            read_allowed(self.forward_allow),
            read_denied(self.forward_deny),
            "EVERGREEN_FORWARD_DENY",
        )

    @property
    def public_host(self) -> str:
        """The public name of the installation."""
        return urlsplit(self.public_url).hostname or "evergreen"
