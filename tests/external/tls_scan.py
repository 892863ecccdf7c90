"""What a server agrees to in TLS, found out by offering one thing at a time.

The offers are made by the OpenSSL of `fips_root`'s Debian without FIPS mode, which has all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.external.fips_root import Debian

_CONFIGURATION: Final = """\
openssl_conf = openssl_init
[openssl_init]
ssl_conf = ssl_sect
[ssl_sect]
system_default = offer
[offer]
MinProtocol = {protocol}
MaxProtocol = {protocol}
{kind} = {ciphers}
Groups = {groups}
"""
_OFFER: Final = """\
import socket, ssl, sys
port, greeting, certificate, key = int(sys.argv[1]), *sys.argv[2:]
plain = socket.create_connection(("127.0.0.1", port), 20)
if greeting == "nats":
    while not plain.recv(65536).endswith(b"\\n"):
        pass
if greeting == "postgres":
    plain.sendall(bytes.fromhex("0000000804d2162f"))
    assert plain.recv(1) == b"S"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if certificate:
    context.load_cert_chain(certificate, key)
try:
    with context.wrap_socket(plain, server_hostname="localhost") as agreed:
        print(agreed.version(), agreed.cipher()[0])
except OSError as refused:
    print("refused", refused)
"""
_AES: Final = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
_AES_12: Final = "ECDHE+AESGCM:@SECLEVEL=0"


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing, with everything else as it may be."""

    name: str
    protocol: str
    ciphers: str
    groups: str
    approved: bool


OFFERS: Final = (
    Offer("P-256", "TLSv1.3", _AES, "P-256", approved=True),
    Offer("TLS 1.2", "TLSv1.2", _AES_12, "P-256", approved=True),
    Offer("X25519", "TLSv1.3", _AES, "X25519", approved=False),
    Offer("X448", "TLSv1.3", _AES, "X448", approved=False),
    Offer("ChaCha20", "TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256", "P-256", approved=False),
    Offer("ChaCha20 of 1.2", "TLSv1.2", "ECDHE+CHACHA20", "P-256", approved=False),
    Offer("X25519 of 1.2", "TLSv1.2", _AES_12, "X25519", approved=False),
    Offer("TLS 1.1", "TLSv1.1", "ALL:@SECLEVEL=0", "P-256", approved=False),
    Offer("X25519 beside ML-KEM", "TLSv1.3", _AES, "X25519MLKEM768", approved=False),
)


def agreed(
    debian: Debian, port: int, *, greeting: str = "", certificate: tuple[str, str] = ("", "")
) -> dict[str, str]:
    """What is agreed to for each offer: a version and a cipher, or `refused` and why.

    Args:
        port: of the server, on loopback.
        greeting: what comes before TLS, `nats` or `postgres`.
        certificate: the client's, and its key, as files in Debian.
    """
    place = debian.root / "opt/offers"
    place.mkdir(exist_ok=True)
    (place / "offer.py").write_text(_OFFER)
    found = {}
    for offer in OFFERS:
        (place / "offer.cnf").write_text(_configuration(offer))
        found[offer.name] = debian.must(
            "python3", "/opt/offers/offer.py", str(port), greeting, *certificate,
            OPENSSL_CONF="/opt/offers/offer.cnf",
        ).strip()  # fmt: skip
    return found


def _configuration(offer: Offer) -> str:
    # Each version has ciphers of its own.
    kind = "Ciphersuites" if offer.protocol == "TLSv1.3" else "CipherString"
    return _CONFIGURATION.format(
        protocol=offer.protocol, kind=kind, ciphers=offer.ciphers, groups=offer.groups
    )


def wrongly(found: dict[str, str]) -> set[str]:
    """The offers that were answered as no approved server does."""
    return {
        offer.name for offer in OFFERS if found[offer.name].startswith("refused") == offer.approved
    }
