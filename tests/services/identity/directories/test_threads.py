"""Conversations are bounded: in time, in number, and in what a server may send."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from servicekit.errors import DomainError
from servicekit.outgoing.addresses import Rules, read_allowed
from servicekit.outgoing.guard import Guard
from services.identity.directories.asking import AwayError, Settings
from services.identity.directories.domain import READINGS
from services.identity.directories.threads import DirectoryThreads
from tests.fakes import ldap
from tests.fakes.ldap import BASE, SERVICE, SERVICE_PASSWORD, FakeDirectory
from tests.support.directories import fake

__all__ = ["fake"]  # the fixture

PATIENCE = 60.0


def settings(fake: FakeDirectory) -> Settings:
    return Settings(
        urls=(fake.ldaps,),
        starttls=False,
        ca_pem=fake.ca_pem,
        bind_dn=SERVICE,
        bind_password=SERVICE_PASSWORD,
        base_dn=BASE,
        group_base_dn="",
        reading=READINGS["ad"],
        groups=(),
        guard=Guard(Rules("root", read_allowed(f"{fake.allowed},127.0.0.1/32:1"))),
        root=True,
    )


@pytest.mark.parametrize("lie", ["hang", "drip", "flood"])
async def test_a_server_holds_nobody(fake: FakeDirectory, lie: str) -> None:
    """Whatever it sends, and however slowly: who waits is answered, and the thread is free."""
    fake.lie = lie
    threads = DirectoryThreads(1, 2)
    with pytest.raises(AwayError):
        await threads.run(uuid4(), settings(fake), lambda ldap: ldap.count())
    fake.lie = ""
    # The one thread there is answers again, although the server goes on with the first one.
    answer = await asyncio.wait_for(
        threads.run(uuid4(), settings(fake), lambda ldap: ldap.count()), PATIENCE
    )
    assert answer == 0


async def test_one_directory_takes_nothing_from_another(
    fake: FakeDirectory, tmp_path: Path
) -> None:
    """With all conversations of one hanging, another one's are had."""
    fake.lie = "hang"
    threads = DirectoryThreads(3, PATIENCE)
    hung = uuid4()
    waiting = [
        asyncio.ensure_future(threads.run(hung, settings(fake), lambda ldap: ldap.count()))
        for _ in range(18)
    ]
    with ldap.running(tmp_path / "other") as other:
        other.person("anna")
        assert await threads.run(uuid4(), settings(other), lambda found: found.count()) == 1
    # Those that wait are bounded, too.
    with pytest.raises(DomainError) as refused:
        await threads.run(hung, settings(fake), lambda ldap: ldap.count())
    assert refused.value.reason == "DIRECTORY_BUSY"
    assert fake.connections == 2
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    fake.lie = ""


async def test_a_directory_that_cannot_be_reached_is_told(fake: FakeDirectory) -> None:
    """Nobody listens, nobody has the name: each with a sentence of its own."""
    threads = DirectoryThreads(1, PATIENCE)
    for url, step in (("ldaps://127.0.0.1:1", "connect"), ("ldaps://no.invalid", "resolve")):
        wrong = replace(settings(fake), urls=(url,))
        with pytest.raises(AwayError) as error:
            await threads.run(uuid4(), wrong, lambda ldap: ldap.count())
        assert error.value.step == step
        assert "Traceback" not in str(error.value)


async def test_the_event_loop_goes_on(fake: FakeDirectory) -> None:
    """While a directory hangs, everything else runs."""
    fake.lie = "hang"
    threads = DirectoryThreads(1, 2)
    asked = asyncio.ensure_future(threads.run(uuid4(), settings(fake), lambda ldap: ldap.count()))
    turns, began = 0, time.monotonic()
    while not asked.done() and time.monotonic() - began < PATIENCE:
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(AwayError):
        await asked
    assert turns > 20
