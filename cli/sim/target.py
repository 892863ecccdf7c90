"""Where the gateway is."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit


class Target(NamedTuple):
    """An address and how it is trusted."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str, ca_file: str | Path | None = None) -> Self:
        """Reads an address.

        Args:
            url: `https://host[:port]`; `http://…` is for tests.
            ca_file: the CA of the certificate; the system's when not given.

        Raises:
            ValueError: it is no such address.
            OSError: the CA file cannot be read.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{url} is not an address like https://host:8443")
        secure = parts.scheme == "https"
        tls = ssl.create_default_context(cafile=ca_file) if secure else None
        return cls(parts.hostname, parts.port or (443 if secure else 80), tls)

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
