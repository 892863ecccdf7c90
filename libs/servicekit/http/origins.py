"""Origins: which pages of browsers belong together."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


def origins_of(urls: str) -> tuple[str, ...]:
    """The origins of addresses with commas between them.

    Raises:
        ValueError: one is no address of a web server.
    """
    return tuple(dict.fromkeys(origin_of(url) for url in urls.split(",") if url.strip()))


def origin_of(url: str) -> str:
    """The origin of an address: in lower case, without a default port, and without a path.

    Raises:
        ValueError: it is no address of a web server.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not http(s)://HOST[:PORT]")
    host = parts.hostname
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    if ":" in host:
        host = f"[{host}]"
    port = parts.port
    is_default = port is None or port == _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")
