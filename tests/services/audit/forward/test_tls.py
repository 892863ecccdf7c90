"""Targets with TLS: a private CA, a client's certificate, and what is wrong with certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergreen.v1 import audit_pb2 as pb
from tests.services.audit.forward.conftest import StartWorld
from tests.support.audit import event
from tests.support.receivers import Authority, receiving
from tests.support.refusals import refusal


async def test_a_target_of_a_private_ca_asks_for_a_certificate(
    start_world: StartWorld, tmp_path: Path
) -> None:
    """Both sides show one; the key is sealed and never shown."""
    ca = Authority()
    mine = ca.issue("evergreen")
    context = ca.server(tmp_path, ca.issue("localhost"), mutual=True)
    async with receiving(context) as other:
        world = await start_world(other)
        made = await world.create(
            webhook={
                "ca_pem": ca.pem,
                "client_certificate_pem": mine.certificate,
                "client_key_pem": mine.key,
            }
        )
        await world.record(event(1))
        await other.until_events(1)
        assert other.peers[0]["subject"] == ((("commonName", "evergreen"),),)
        assert made.webhook.client_key_set
        assert "PRIVATE KEY" not in str(await world.get(made.id))


@pytest.mark.parametrize(
    ("names", "days", "trusted", "reason"),
    [
        (["localhost"], -1, True, "CERTIFICATE_EXPIRED"),
        (["localhost"], 20, False, "CERTIFICATE_UNKNOWN"),
        (["other.example"], 20, True, "CERTIFICATE_OF_ANOTHER_NAME"),
    ],
    ids=["expired", "unknown", "name"],
)
async def test_a_wrong_certificate_holds_the_lane(
    start_world: StartWorld,
    tmp_path: Path,
    names: list[str],
    days: int,
    trusted: bool,
    reason: str,
) -> None:
    """With the reason; nothing is sent, and it goes on when the certificate is good."""
    ca, other_ca = Authority(), Authority("Other")
    async with receiving(ca.server(tmp_path, ca.issue(*names, days=days))) as other:
        world = await start_world(other)
        made = await world.create(webhook={"ca_pem": ca.pem if trusted else other_ca.pem})
        await world.record(event(1))
        found = await world.until(made.id, lambda f: bool(f.state.last_error))
        assert found.state.last_error == reason
        assert other.posted == []


async def test_what_is_no_certificate_is_refused(start_world: StartWorld) -> None:
    """By the field, before anything is stored."""
    world = await start_world()
    ca = Authority()
    one, two = ca.issue("a"), ca.issue("b")
    for webhook, field in (
        ({"ca_pem": "nothing"}, "webhook.caPem"),
        ({"client_certificate_pem": one.certificate}, "webhook.clientKeyPem"),
        ({"client_key_pem": one.key}, "webhook.clientCertificatePem"),
        (
            {"client_certificate_pem": one.certificate, "client_key_pem": two.key},
            "webhook.clientCertificatePem",
        ),
    ):
        refused = await refusal(world.create(webhook={"url": "https://9.9.9.9/"} | webhook))
        assert refused.fields == [field], field
    listed = await world.audit.forwarders.ListForwarders(
        pb.ListForwardersRequest(), metadata=world.admin
    )
    assert not listed.forwarders
