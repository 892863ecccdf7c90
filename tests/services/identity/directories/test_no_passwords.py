"""What is no password is sent to no directory: a bind without one succeeds, for nobody."""

from __future__ import annotations

import grpc
import pytest

from evergreen.v1 import identity_pb2 as pb
from tests.support import callers
from tests.support.directories import DOMAIN, World, fake, world

__all__ = ["fake", "world"]  # the fixtures


@pytest.mark.parametrize("password", ["\0", "the password of anna\0", "\0the password of anna"])
async def test_nobody_binds_with_what_is_none(world: World, password: str) -> None:
    """Neither empty, nor with what ends a text in other programs (RFC 4513, section 5.1.2)."""
    anna = world.ldap.person("anna", "Admins")
    assert await world.refused("anna", password) == "INVALID_FIELD"
    assert anna.dn not in {name for name, _ in world.ldap.binds}
    empty = pb.LoginRequest(email=f"anna@{DOMAIN}")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.auth.Login(empty, metadata=callers.anonymous())
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert anna.dn not in {name for name, _ in world.ldap.binds}
    assert (await world.login("anna")).role == "Admin"
