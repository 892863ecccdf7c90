"""The gateway in FIPS mode: approved algorithms alone in TLS, and tokens of both kinds of keys."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract.contexts import CONTEXTS
from deploy.gateway import Endpoints, GatewaySettings, render
from servicekit.observability.tracing import Traces
from servicekit.security import mode
from servicekit.security.signing import PublicKey
from servicekit.security.tls import Tls
from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway
from tests.gateway.tokens import Signer
from tests.support import yaml_text

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


def _tls_contexts(found: Any) -> Iterator[Any]:
    """All settings of TLS, of listeners and to upstreams, wherever they stand."""
    if isinstance(found, dict):
        if "common_tls_context" in found:
            yield found["common_tls_context"]
        for part in found.values():
            yield from _tls_contexts(part)
    elif isinstance(found, list):
        for part in found:
            yield from _tls_contexts(part)


def test_no_tls_of_the_gateway_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """That for devices, to services, to the console and to a collector of spans."""
    settings = GatewaySettings(
        directory=Path("/conf"),
        port=8443,
        certificate_file=Path("/tls/crt"),
        private_key_file=Path("/tls/key"),
        admin="unix:/run/admin.sock",
        contexts={c: Endpoints(f"{c}:9090", f"{c}:9092") for c in CONTEXTS},
        inside=Tls(Path("/in/ca"), Path("/in/crt"), Path("/in/key")),
        console="https://console.example",
        traces=Traces("spans.example", 4317, tls=True, ratio=1.0),
        metrics="0.0.0.0:9464",
    )

    def contexts() -> list[Any]:
        return [
            one for text in render(settings).values() for one in _tls_contexts(yaml_text.load(text))
        ]

    usual = contexts()
    assert not [one for one in usual if "compliance_policies" in one["tls_params"]]
    monkeypatch.setattr(mode, "_required", True)
    approved = contexts()
    # One listener, two ways to each service and one more to identity, the console, the collector.
    assert len(approved) == len(usual) == 1 + 2 * len(CONTEXTS) + 1 + 2
    for one in approved:
        assert one["tls_params"]["compliance_policies"] == ["FIPS_202205"]
        # Suites of the policy's own; ours would be refused by it.
        assert "cipher_suites" not in one["tls_params"]
