"""What gRPC reflection tells."""

from __future__ import annotations

from pathlib import Path

import pytest

import evergreen.v1
from contract.access import ACCESS, Audience
from servicekit.rpc.reflection import public_pool

_DESCRIPTORS = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"


@pytest.mark.parametrize("rpc", ACCESS)
def test_it_tells_what_callers_from_outside_may_meet(rpc: str) -> None:
    """Every public RPC with its messages; nothing of what only services call."""
    pool = public_pool(_DESCRIPTORS.read_bytes())
    service, method = rpc.removeprefix("/").split("/")
    if ACCESS[rpc].audience is Audience.INTERNAL:
        with pytest.raises(KeyError):
            pool.FindFileContainingSymbol(service)
        for kind in ("Request", "Response"):
            with pytest.raises(KeyError):
                pool.FindMessageTypeByName(f"evergreen.v1.{method}{kind}")
    else:
        assert pool.FindServiceByName(service).FindMethodByName(method)


def test_no_file_holds_an_internal_service() -> None:
    """Reflection answers whole files."""
    pool = public_pool(_DESCRIPTORS.read_bytes())
    for context in ("identity", "enrollment", "policy"):
        file = pool.FindFileByName(f"evergreen/v1/{context}.proto")
        assert b"Internal" not in file.serialized_pb
