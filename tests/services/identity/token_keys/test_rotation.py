"""Rotation of token keys: nothing that was signed is refused, and nothing signs unpublished."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.identity import Identity, identity, refused, running
from tests.support.servers import TestDatabase

__all__ = ["identity"]  # the fixture

_DEVICE = "0192b3a0-0000-7000-8000-000000000001"


class Clock:
    """The real time, and what the test adds."""

    ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def _states(identity: Identity, by: callers.Metadata, purpose: str) -> dict[str, str]:
    found = await identity.keys.ListTokenKeys(pb.ListTokenKeysRequest(), metadata=by)
    return {key.key_id: key.state for key in found.keys if key.purpose == purpose}


async def _published(identity: Identity) -> set[str]:
    return {key.kid for key in (await identity.keys.GetJwks(pb.GetJwksRequest())).keys}


async def _device_key(identity: Identity) -> Any:
    """The key that signs a device's token now."""
    issued = await identity.internal.IssueDeviceToken(
        pb.IssueDeviceTokenRequest(device_id=_DEVICE, tenant_id=_DEVICE, token_version=1)
    )
    return jwt.get_unverified_header(issued.device_token)["kid"]


async def test_a_new_key_is_published_before_it_signs_and_the_old_one_after(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """On every replica, without a restart; the old key goes when its last token has ended."""
    clock = Clock()
    async with running(make_kit, serve, database, tmp_path, clock=clock) as first:
        owner = await first.as_user()
        (old,) = await _states(first, owner, "devices")
        new = await first.keys.RotateTokenKey(
            pb.RotateTokenKeyRequest(purpose="devices"), metadata=owner
        )
        assert new.state == "next"
        assert await _states(first, owner, "devices") == {old: "active", new.key_id: "next"}
        assert {old, new.key_id} <= await _published(first)
        assert await _device_key(first) == old

        clock.ahead = timedelta(seconds=61)
        assert await _device_key(first) == new.key_id
        assert await _states(first, owner, "devices") == {old: "retiring", new.key_id: "active"}
        # A token of 400 days fetches the policy for 90 more.
        clock.ahead = timedelta(days=490)
        assert old in await _published(first)
        clock.ahead = timedelta(days=490, hours=1)
        assert old not in await _published(first)
        assert await _states(first, owner, "devices") == {old: "retired", new.key_id: "active"}


async def test_replicas_learn_a_key_without_a_restart(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """Each reads the keys every few seconds, well before a new one signs."""
    async with running(make_kit, serve, database, tmp_path) as first:
        owner = await first.as_user()
        own = {
            f"{kind}_listen": f"unix:{tmp_path}/second.{kind}"
            for kind in ("grpc", "internal", "http")
        }
        async with running(make_kit, serve, database, tmp_path, **own) as second:
            made = await first.keys.RotateTokenKey(
                pb.RotateTokenKeyRequest(purpose="users"), metadata=owner
            )
            async with asyncio.timeout(60):
                while made.key_id not in await _published(second):
                    await asyncio.sleep(0.2)


async def test_a_second_rotation_waits_and_a_repeated_one_has_the_same_answer(
    identity: Identity,
) -> None:
    """Its event is written once, for the root tenant, and names who did it."""
    owner = await identity.as_user()
    request = pb.RotateTokenKeyRequest(purpose="users", request_id=str(uuid4()))
    first = await identity.keys.RotateTokenKey(request, metadata=owner)
    again = await identity.keys.RotateTokenKey(request, metadata=owner)
    assert again == first
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.keys.RotateTokenKey(
            pb.RotateTokenKeyRequest(purpose="users", request_id=str(uuid4())), metadata=owner
        )
    body = refused(error)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "ROTATION_IN_PROGRESS" in str(body)
    assert first.key_id in body["message"]
    # That of another purpose goes on beside it.
    await identity.keys.RotateTokenKey(pb.RotateTokenKeyRequest(purpose="devices"), metadata=owner)
    events = [e for e in await identity.events() if e["data"]["action"] == "identity.key_rotated"]
    assert [event["data"]["after"]["purpose"] for event in events] == ["users", "devices"]
    assert events[0]["data"]["after"]["keyId"] == first.key_id
    assert events[0]["data"]["actorRole"] == "Owner"
    assert events[0]["subject"] == f"key-rotations/{request.request_id}"


async def test_two_rotations_at_once_make_one_key(identity: Identity) -> None:
    """The other one is told of the first."""
    owner = await identity.as_user()
    done = await asyncio.gather(
        *(
            identity.keys.RotateTokenKey(pb.RotateTokenKeyRequest(purpose="users"), metadata=owner)
            for _ in range(4)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(one, pb.SigningKey) for one in done) == 1
    assert sorted((await _states(identity, owner, "users")).values()) == ["active", "next"]


async def test_only_owners_of_the_root_tenant_rotate(identity: Identity) -> None:
    """An organisation's Owner is refused with a reason of its own."""
    owner = await identity.as_user()
    org = await identity.org(owner, "North")
    _, theirs = await identity.user(owner, Role.OWNER, org.id)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.keys.RotateTokenKey(
            pb.RotateTokenKeyRequest(purpose="users"), metadata=theirs
        )
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "ROOT_ONLY" in str(refused(error))
    assert list((await _states(identity, owner, "users")).values()) == ["active"]


async def test_keys_are_bounded(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """At most ten of a purpose verify; what was signed before still counts."""
    clock = Clock()
    async with running(make_kit, serve, database, tmp_path, clock=clock) as identity:
        owner = await identity.as_user()
        request = pb.RotateTokenKeyRequest(purpose="devices")
        for _ in range(9):
            await identity.keys.RotateTokenKey(request, metadata=owner)
            clock.ahead += timedelta(seconds=61)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.keys.RotateTokenKey(request, metadata=owner)
        assert "TOO_MANY_KEYS" in str(refused(error))
        assert len(await _states(identity, owner, "devices")) == 10
        # Keys that have ended are forgotten a month later.
        clock.ahead += timedelta(days=600)
        fresh = {"x-evergreen-token-authenticated": str(int(clock().timestamp()))}
        owner = tuple((dict(await identity.as_user()) | fresh).items())
        await identity.keys.RotateTokenKey(request, metadata=owner)
        assert sorted((await _states(identity, owner, "devices")).values()) == ["active", "next"]
