"""The table of who may call what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

import evergreen.v1
from contract.access import ACCESS, AREAS, PACKAGE, SCOPES
from contract.addresses import FORMS, GRPC, HTTP
from contract.contexts import CONTEXTS
from contract.rows import (
    CONSOLE,
    ENDLESS,
    GATEWAY,
    Address,
    Audience,
    Body,
    File,
    RateClass,
    Role,
    Rule,
)

_OWN_ACCOUNT = {
    f"/{PACKAGE}.{name}"
    for name in (
        "AuthService/Logout",
        "AuthService/ChangePassword",
        "SessionService/EndSession",
        "SessionService/EndOtherSessions",
        "SecondFactorService/CreateRecoveryCodes",
        "SecondFactorService/CreateTotp",
        "SecondFactorService/ConfirmTotp",
        "SecondFactorService/DeleteTotp",
        "AuthService/StepUp",
        "SecondFactorService/CreatePasskeyOptions",
        "SecondFactorService/CreatePasskey",
        "SecondFactorService/DeletePasskey",
        "ApiTokenService/CreateApiToken",
        "ApiTokenService/RotateApiToken",
        "ApiTokenService/RevokeApiToken",
    )
}
_FILE = File(about="A file", media=("text/plain",))
_PUBLIC = Rule(audience=Audience.PUBLIC, rate=RateClass.OPEN)
_REPORT = Rule(audience=Audience.DEVICE, writes=True, rate=RateClass.DEVICE, agent_form=True)
_READ = Rule(audience=Audience.USER, roles=frozenset({Role.OWNER}), rate=RateClass.USER)
_INTERNAL = Rule(audience=Audience.INTERNAL, callers=frozenset({"policy"}))
_PAGE = Address(
    path="/page", verbs=("GET",), served_by="identity", rate=RateClass.PAGES, cookies=True
)
_PROBE = Address(
    path="/p.S/M", verbs=("POST",), served_by="audit", rate=RateClass.OPEN, is_grpc=True
)
_OWN = Address(path="/own", served_by=GATEWAY)
_MAKES_REPORT = "/evergreen.v1.ReportService/CreateReport"


_DESCRIPTORS = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"
_FILES = descriptor_pb2.FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file
_OURS = [file for file in _FILES if file.package == PACKAGE]
METHODS = {
    f"/{PACKAGE}.{service.name}/{method.name}": method
    for file in _OURS
    for service in file.service
    for method in service.method
}
MESSAGES = {message.name for file in _OURS for message in file.message_type}


def test_every_rpc_has_its_row_and_every_row_its_rpc() -> None:
    """None is forgotten, none is left over."""
    assert set(ACCESS) == set(METHODS)


@pytest.mark.parametrize("rpc", ACCESS)
def test_rows_fit_the_protos(rpc: str) -> None:
    """A stream is endless, a file is a file in both, the agent's form is DeviceService's, and what
    changes something has no GET."""
    rule, method = ACCESS[rpc], METHODS[rpc]
    public = rule.audience is not Audience.INTERNAL
    assert (rule.timeout == ENDLESS) is (method.server_streaming and public)
    assert bool(rule.file) is (method.output_type == ".google.api.HttpBody")
    if rule.file and (name := rule.file.list_of or rule.file.agent_form_of):
        assert name in MESSAGES
    assert rule.agent_form is rpc.startswith(f"/{PACKAGE}.DeviceService/")
    verb = method.options.Extensions[annotations_pb2.http].WhichOneof("pattern")
    assert bool(verb) is public
    assert not (rule.writes and verb == "get")
    assert ("Internal" in rpc) is not public


@pytest.mark.parametrize("rpc", ACCESS)
def test_rows_name_contexts_and_auditors_only_read(rpc: str) -> None:
    """Auditors write nothing but to their own account, and make reports of what they may read;
    callers are contexts."""
    rule = ACCESS[rpc]
    assert rule.context in CONTEXTS
    assert rule.callers <= set(CONTEXTS)
    if rule.writes and rule.audience is Audience.USER and rpc not in {*_OWN_ACCOUNT, _MAKES_REPORT}:
        assert Role.AUDITOR not in rule.roles


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (_PUBLIC, {"roles": frozenset({Role.OWNER})}),
        (_READ, {"roles": frozenset()}),
        (_READ, {"callers": frozenset({"policy"})}),
        (_INTERNAL, {"callers": frozenset()}),
        (_PUBLIC, {"rate": None}),
        (_PUBLIC, {"rate": RateClass.USER}),
        (_READ, {"rate": RateClass.OPEN}),
        (_REPORT, {"rate": RateClass.USER}),
        (_INTERNAL, {"rate": RateClass.DEVICE}),
        (_INTERNAL, {"timeout": 3}),
        (_INTERNAL, {"file": _FILE}),
        (_READ, {"timeout": -1}),
        (_REPORT, {"strict": True}),
        (_INTERNAL, {"strict": True}),
        (_READ, {"agent_form": True}),
        (_READ, {"body": Body.EVENTS}),
        (_REPORT, {"unchanged": True}),
        (_READ, {"unchanged": True}),
        (_REPORT, {"file": _FILE}),
        (_REPORT, {"body": Body.FORM}),
        (_PAGE, {"path": "page"}),
        (_PAGE, {"audience": Audience.DEVICE, "rate": RateClass.DEVICE}),
        (_PAGE, {"audience": Audience.USER, "rate": RateClass.USER}),
        (_PAGE, {"rate": None}),
        (_PAGE, {"rate": RateClass.USER}),
        (_PAGE, {"timeout": -1}),
        (_PAGE, {"verbs": ()}),
        (_PAGE, {"body": Body.EVENTS}),
        (_PAGE, {"body": Body.DIALOGUE}),
        (_PAGE, {"cookies": False, "checks_origin": True}),
        (_PROBE, {"verbs": ("GET",)}),
        (_PROBE, {"cookies": True}),
        (_OWN, {"timeout": 3}),
        (_OWN, {"cookies": True}),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    row: Rule | Address, change: dict[str, Any]
) -> None:
    """It is not made at all, so that no program starts with it."""
    with pytest.raises(ValueError, match=type(row).__name__):
        replace(row, **change)


def test_every_address_has_one_server() -> None:
    """No row names a context that is none; no two rows take the same method at the same path."""
    assert {row.served_by for row in HTTP} <= {*CONTEXTS, CONSOLE, GATEWAY}
    assert [row for row in HTTP if row.checks_origin] == list(FORMS)
    assert [row for row in HTTP if row.is_grpc] == list(GRPC)
    taken = [(row.path, verb, row.needs) for row in HTTP for verb in row.verbs]
    assert len(set(taken)) == len(taken)


def test_tokens_open_nothing_that_opens_more() -> None:
    """Every call of users has a scope, or none because it hands out what opens something, or
    because it is about the caller's own account. What writes needs a scope that writes."""
    of_users = {rpc: row for rpc, row in ACCESS.items() if row.audience is Audience.USER}
    assert {row.scope for row in of_users.values()} - {""} <= set(SCOPES)
    assert set(SCOPES) == {f"{area}:{verb}" for area in AREAS for verb in ("read", "write")}
    for row in of_users.values():
        assert not row.scope or row.scope.endswith(":write") is row.writes
    assert all(not row.area for row in ACCESS.values() if row.audience is not Audience.USER)
    closed = {rpc for rpc, row in of_users.items() if not row.scope}
    for secret in ("Password", "ApiToken", "ServiceAccount", "CreateUser", "InviteUser"):
        assert {rpc for rpc in of_users if secret in rpc} <= closed, secret
    for own in ("/AuthService/", "SecondFactor", "TokenKeyService/", "CreateEventCredential"):
        assert {rpc for rpc in of_users if own in rpc} <= closed, own
    assert {rpc for rpc in of_users if "RotateAuditKey" in rpc} <= closed


def test_an_area_is_for_users() -> None:
    """A row of devices or services has no scope that a token could have."""
    for row in (_PUBLIC, _REPORT, _INTERNAL):
        with pytest.raises(ValueError, match="areas are for users"):
            replace(row, area="devices")
