"""The table of who may call what."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import descriptor_pb2

import evergreen.v1
from servicekit.access import ACCESS, CONTEXTS, PACKAGE, Audience, Role


def _rpcs() -> set[str]:
    path = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    return {
        f"/{f.package}.{s.name}/{m.name}"
        for f in files.file
        if f.package == PACKAGE
        for s in f.service
        for m in s.method
    }


def test_every_rpc_has_its_row_and_every_row_its_rpc() -> None:
    """None is forgotten, none is left over."""
    assert set(ACCESS) == _rpcs()


def test_rows_are_consistent() -> None:
    """Roles where users call and only there; auditors never write but to their own account."""
    own = {"Logout", "ChangePassword"}
    for rpc, rule in ACCESS.items():
        assert rule.context in CONTEXTS
        assert bool(rule.roles) is (rule.audience is Audience.USER), rpc
        if rule.writes and rule.audience is Audience.USER and rpc.rpartition("/")[2] not in own:
            assert Role.AUDITOR not in rule.roles, rpc
        if "Internal" in rpc:
            assert rule.audience is Audience.INTERNAL, rpc
