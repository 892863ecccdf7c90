"""The gateway in FIPS mode: approved algorithms alone in TLS, and tokens of both kinds of keys."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from servicekit.security import mode
from servicekit.security.signing import PublicKey
from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway
from tests.gateway.tokens import Signer

_PATH = "/api/policies"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway() -> AsyncIterator[Gateway]:
    """One whose configuration was written in FIPS mode; Envoy itself is the usual one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mode, "_required", True)
        async with running_gateway(key_refresh=0.2) as found:
            patch.undo()
            yield found


async def _agreed(gateway: Gateway, **wanted: object) -> tuple[str, str]:
    """The version and the cipher that a client of TLS gets, which wants some things alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(gateway.certificate.certificate_file)
    if "ciphers" in wanted:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(str(wanted["ciphers"]))
    if "curve" in wanted:
        context.set_ecdh_curve(str(wanted["curve"]))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.settings.port, ssl=context, server_hostname="localhost"
    )
    del reader
    found = writer.get_extra_info("cipher")
    writer.close()
    return found[1], found[0]


async def test_tls_is_of_approved_algorithms(gateway: Gateway) -> None:
    """A client without AES-GCM or without curves of NIST gets no connection."""
    version, cipher = await _agreed(gateway)
    assert version == "TLSv1.3"
    assert cipher.startswith("TLS_AES_")
    assert await _agreed(gateway, ciphers="ECDHE+AESGCM")
    assert await _agreed(gateway, curve="prime256v1")
    for refused in ({"ciphers": "ECDHE+CHACHA20"}, {"curve": "X25519"}):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _agreed(gateway, **refused)


async def test_tokens_of_both_kinds_of_keys_pass(gateway: Gateway) -> None:
    """Each by the key that it names; neither by the other's."""
    old, new = gateway.signer, Signer("new", ec.generate_private_key(ec.SECP256R1()))
    gateway.backends.jwks = {"keys": [old.jwk, new.jwk]}

    async def passes(token: str) -> bool:
        return (await gateway.http.get(_PATH, headers=bearer(token))).status_code == 200

    await eventually(lambda: passes(new.user()))
    assert await passes(old.user())
    mixed = Signer("new")
    error_of(await gateway.http.get(_PATH, headers=bearer(mixed.user())), 401, "UNAUTHENTICATED")
    # As the product itself writes it.
    raw = new.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert {**PublicKey(raw).jwk(), "kid": "new"} == new.jwk
