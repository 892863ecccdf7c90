"""No answer of the policy service shows a school a secret of its district."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from contract.access import ACCESS, Role
from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.rpc.values import to_value
from tests.services.policy.variables.test_variables import SECRET, TEMPLATE, Keeper
from tests.support.policy import ORG, RESELLER, Device, World, verified, world

__all__ = ["world"]

INLINE = "the district's other secret"
ABOVE: dict[str, Any] = {
    "template": {
        "network": {
            "wifi": [
                {"ssid": "Pupils", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"},
                {"ssid": "Staff", "security": "wpa-psk", "passphrase": INLINE},
            ],
            "vpns": [{"name": "Home", "data": {"remote": "{{secret.wifi}}"}}],
        }
    }
}
MASKED: dict[str, Any] = {
    "network": {
        "wifi": [
            {"ssid": name, "security": "wpa-psk", "passphrase": "[masked]"}
            for name in ("Pupils", "Staff")
        ]
    }
}

_REFUSED = ((MASKED, True), (ABOVE, False), (TEMPLATE, True))
PLAIN: dict[str, Any] = {"browser": {"homepage": "https://school.example"}}


def _methods() -> Iterator[MethodDescriptor]:
    """What users may call: reads first, and deletes last."""
    found = [
        method
        for service in policy_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if Role.OWNER in ACCESS[f"/{service.full_name}/{method.name}"].roles
    ]
    yield from sorted(found, key=_turn)


def _turn(method: MethodDescriptor) -> int:
    if method.name.startswith(("Get", "List", "Diff", "Export")):
        return 0
    return 2 if method.name.startswith("Delete") else 1


def _filled(method: MethodDescriptor, known: dict[str, Any], *, on: bool) -> Message:
    """A request with all that its fields' names say."""
    request: Message = getattr(policy_pb2, method.input_type.name)()
    for field in method.input_type.fields:
        if field.type == FieldDescriptor.TYPE_BOOL:
            setattr(request, field.name, on)
        elif field.name == "bundle":
            to_value(known["bundle"], request.bundle)  # type: ignore[attr-defined]  # by its descriptor
        elif field.name in known and field.type == FieldDescriptor.TYPE_STRING:
            setattr(request, field.name, known[field.name])
    if method.name == "ApplyPolicySet":
        entry = request.policies.add(alias="x")  # type: ignore[attr-defined]  # by its descriptor
        to_value(known["bundle"], entry.bundle)
    return request


async def test_no_answer_shows_a_school_its_districts_secret(world: World) -> None:
    """Each call of users, with ids of the school's own and of the district's things, with all
    switches on and off, twice: what a write has made is read afterwards."""
    district = Keeper(world.channel, RESELLER.id)
    await district.variable(
        "Create", org_id=str(RESELLER.id), name="host", value="one.example", overridable=True
    )
    wifi = await district.variable(
        "Create",
        org_id=str(RESELLER.id),
        name="wifi",
        value=SECRET,
        secret=True,
        overridable=True,
    )
    above = await district.published(RESELLER.id, ABOVE)
    owner = Keeper(world.channel, ORG.id, "Owner")
    own = await owner.published(ORG.id, {"browser": {"homepage": "https://school.example"}})
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    world.neighbours.registry.add(device.id, ORG.id)
    answer = await device.pull()
    verified(await world.pem(), answer)
    assert SECRET in answer.text
    assert INLINE in answer.text
    superuser = await world.database.superuser()
    rows = await superuser.fetch(
        "SELECT digest FROM policy.documents WHERE convert_from(body, 'UTF8') LIKE $1",
        f"%{SECRET}%",
    )
    await superuser.close()
    hidden = [SECRET, INLINE, *(row["digest"].hex() for row in rows)]
    assert len(hidden) > 2
    worked: set[str] = set()
    for round_ in range(2):
        for method in _methods():
            if not round_ and _turn(method) == 2:
                continue
            for id_ in (own.id, above.id, str(device.id), wifi.id):
                for bundle, on in (*_REFUSED, (PLAIN, True), (PLAIN, False)):
                    known = {
                        **dict.fromkeys(("id", "policy_id", "rollout_id"), id_),
                        "org_id": str(ORG.id),
                        "version": above.version if id_ == above.id else own.version,
                        "name": f"n{round_}",
                        "value": "x",
                        "apply": "NOW",
                        "bundle": bundle,
                    }
                    said = await _said(world, owner, method, _filled(method, known, on=on), worked)
                    for secret in hidden:
                        assert secret not in said, (method.full_name, id_, said[:2000])
    told = json.dumps(await world.events())
    assert not [secret for secret in hidden if secret in told]
    # It is no proof unless calls that answer policies did answer.
    assert {
        "GetPolicy", "ListPolicies", "ListPolicyVersions", "DiffPolicyVersions", "SimulatePolicy",
        "GetLayeredPolicy", "GetEffectivePolicy", "ExportPolicySet", "CreatePolicy",
        "UpdatePolicy", "PublishPolicy", "RollbackPolicy", "ListPolicyVariables",
    } <= worked  # fmt: skip


async def _said(
    world: World, owner: Keeper, method: MethodDescriptor, request: Message, worked: set[str]
) -> str:
    """An answer or an error, as text."""
    stub = getattr(policy_pb2_grpc, f"{method.containing_service.name}Stub")(world.channel)
    try:
        answer = await getattr(stub, method.name)(request, metadata=owner.metadata, timeout=60)
    except grpc.aio.AioRpcError as refused:
        assert refused.code() not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}, (
            method.full_name,
            refused.details(),
        )
        return f"{refused.details()} {refused.trailing_metadata()} {refused.debug_error_string()}"
    worked.add(method.name)
    raw = answer.SerializeToString().decode("utf-8", "backslashreplace")
    return json_format.MessageToJson(answer, ensure_ascii=False) + raw
