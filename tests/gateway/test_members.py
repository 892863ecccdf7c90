"""Names that no field has, and parameters without a value, before the transcoder."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from deploy.gateway.api import load
from deploy.gateway.settings import DESCRIPTORS
from evergreen.v1 import identity_pb2, policy_pb2, telemetry_pb2
from servicekit.call import H_UNKNOWN
from tests.gateway.backends import Seen
from tests.gateway.harness import Gateway, bearer, error_of

TRANSCODED = [m for m in load(DESCRIPTORS) if not m.rule.agent_form]


async def _sent(gateway: Gateway, verb: str, path: str, **what: Any) -> Seen:
    gateway.backends.seen.clear()
    headers = bearer(gateway.signer.user())
    await gateway.http.request(verb, path, headers=headers, **what)
    (seen,) = gateway.backends.seen
    return seen


def _unknown(seen: Seen) -> list[str]:
    header = seen.headers.get(H_UNKNOWN, "")
    return [unquote(entry) for entry in header.split(",") if entry]


async def test_a_space_may_be_a_plus(gateway: Gateway) -> None:
    """As browsers' URLSearchParams write it; a plus sign is `%2B`."""
    for query in ("search=a+b%2Bc", "search=a%20b%2bc"):
        seen = await _sent(gateway, "GET", f"/api/devices?{query}")
        assert telemetry_pb2.ListDevicesRequest.FromString(seen.body).search == "a b+c"


async def test_a_parameter_without_a_value_is_not_given(gateway: Gateway) -> None:
    """Also one of a time or a number, of which an empty text is none."""
    empty = "&".join(f"{n}=" for n in ("orgId", "status", "lastSeenAfter", "pageSize", "limit"))
    for query in (empty, f"{empty}&search=x", f"&&search=x&{empty}&pageToken", "pageSize"):
        seen = await _sent(gateway, "GET", f"/api/devices?{query}")
        request = telemetry_pb2.ListDevicesRequest.FromString(seen.body)
        assert request == telemetry_pb2.ListDevicesRequest(search="x" if "x" in query else "")
        assert _unknown(seen) == []


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ("pageSize=3&page_token=t&page%53ize=2", []),
        ("filter=x", ["q:filter"]),
        ("filter=x&pagesize=3&filter=y", ["q:filter", "q:pagesize", "q:filter"]),
        ("f%c3%a4%2c=x", ["q:f\u00e4,"]),
        ("orgId.x=1&.orgId=1&=1", ["q:orgId.x", "q:.orgId", "q:"]),
        ("%zz=1", ["q:%zz"]),
    ],
)
async def test_parameters_that_no_field_has(
    gateway: Gateway, query: str, unknown: list[str]
) -> None:
    """The service is told of them, however they are written."""
    assert _unknown(await _sent(gateway, "GET", f"/api/policies?{query}")) == unknown


@pytest.mark.parametrize(
    ("body", "unknown"),
    [
        (b"", []),
        (b"{}", []),
        (b' {"email" :"a\\"\\\\", "role": null,"tenant_id": "", "tenantId":""}\n', []),
        (b'{"\\u0065mail":"\\"","role":"}{"}', []),
        (b'{"orgid":1}', ["b:orgid"]),
        (b'{"emai\\u006c2":"a", "x":{"email":[1,{"y":"\\""}]}}', ["b:email2", "b:x"]),
        (b'{"x":1,"email":"a","x":2}', ["b:x", "b:x"]),
        ('{"\u00e4,b:c":1}'.encode(), ["b:\u00e4,b:c"]),
        (b'{"Email":{"email":1},"e\\/":[]}', ["b:Email", "b:e/"]),
        (json.dumps(dict.fromkeys(map(str, range(20)))).encode(), [f"b:{n}" for n in range(8)]),
        # What the transcoder takes although it is not JSON.
        (b"{'email':'a'}", ["invalid"]),
        (b'{email:"a"}', ["invalid"]),
        (b'{"email":"a",}', ["invalid"]),
    ],
)
async def test_members_that_no_field_has(gateway: Gateway, body: bytes, unknown: list[str]) -> None:
    """The service is told of them, however they are written."""
    assert _unknown(await _sent(gateway, "POST", "/api/users", content=body)) == unknown


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        *((f'{{"signed": {value}}}', []) for value in ("true", "false", "null")),
        *(
            (f'{{"name": "n", "signed" :{value}}}', ["tb:signed"])
            for value in ('"yes"', '"true"', '"0"')
        ),
        # What the bundle has is the service's to check.
        ('{"bundle": {"signed": "yes", "x": [["y"]]}, "signed": "no", "x": 1}', None),
    ],
)
async def test_true_and_false_are_words(
    gateway: Gateway, body: str, wrong: list[str] | None
) -> None:
    """The transcoder takes texts for them: "yes" as true. The service is told of those."""
    seen = await _sent(gateway, "POST", "/api/policies", content=body.encode())
    assert _unknown(seen) == (["tb:signed", "b:x"] if wrong is None else wrong)


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ("[]", []),
        ("null", []),
        ('[{"group": "a"}, {"group": "b", "role": "Admin"}]', []),
        ('{"group": "a"}', ["tl:roleMappings"]),
        ('{"grup": "a"}', ["tl:roleMappings", "b:roleMappings.grup"]),
        ('[{"group": "a"}, {"grup": "b"}]', ["b:roleMappings[1].grup"]),
    ],
)
async def test_lists_are_lists(gateway: Gateway, rows: str, wrong: list[str]) -> None:
    """The transcoder takes what stands alone for a list of one. The service is told of it."""
    body = f'{{"roleMappings": {rows}, "urls": ["a"]}}'.encode()
    assert _unknown(await _sent(gateway, "POST", "/api/directories", content=body)) == wrong
    body = f'{{"role_mappings": {rows}, "urls": "a"}}'.encode()
    wrong = [one.replace("roleMappings", "role_mappings") for one in wrong]
    seen = await _sent(gateway, "POST", "/api/directories", content=body)
    assert _unknown(seen) == [*wrong, "tl:urls"]


async def test_in_a_query_all_values_are_texts(gateway: Gateway) -> None:
    """There the transcoder's words for true and false stay; a field has no members of its own."""
    seen = await _sent(gateway, "GET", "/api/tenants?showDeleted=1")
    assert identity_pb2.ListTenantsRequest.FromString(seen.body).show_deleted
    assert _unknown(seen) == []
    seen = await _sent(gateway, "GET", "/api/tenants?showDeleted.len=1")
    assert _unknown(seen) == ["q:showDeleted.len"]


async def test_a_policys_bundle_is_free(gateway: Gateway) -> None:
    """Anything may stand where a field takes any JSON; what stands beside it is looked at."""
    bundle = {"signature": {"x": [1, {"name": 2}]}, "": []}
    body = {"name": "n", "bundle": bundle, "signd": True}
    seen = await _sent(gateway, "POST", "/api/policies", json=body)
    assert _unknown(seen) == ["b:signd"]
    assert policy_pb2.CreatePolicyRequest.FromString(seen.body).bundle.HasField("struct_value")


async def test_a_body_where_none_belongs_is_looked_at_too(gateway: Gateway) -> None:
    """The transcoder reads it, so the names in it count."""
    seen = await _sent(gateway, "GET", "/api/users", content=b'{"pageSize":3,"foo":1}')
    assert identity_pb2.ListUsersRequest.FromString(seen.body).page_size == 3
    assert _unknown(seen) == ["b:foo"]


@pytest.mark.parametrize("body", [b"nope", b'{"email":', b"[1]", b'{"email":"\xff"}', b"{}{}"])
async def test_what_is_no_message_is_refused_as_before(gateway: Gateway, body: bytes) -> None:
    """By the transcoder, before a service sees it."""
    headers = bearer(gateway.signer.user())
    answer = await gateway.http.post("/api/users", headers=headers, content=body)
    error_of(answer, 400, "INVALID_ARGUMENT")
    assert gateway.backends.seen == []


async def test_clients_cannot_say_what_is_unknown(gateway: Gateway) -> None:
    """Neither that something is, nor that nothing is."""
    for value in ("b:x", ""):
        headers = {**bearer(gateway.signer.user()), H_UNKNOWN: value}
        await gateway.http.get("/api/policies?filter=x", headers=headers)
        assert _unknown(gateway.backends.seen[-1]) == ["q:filter"]


async def test_devices_may_send_more_than_is_known(gateway: Gateway) -> None:
    """The transcoded call of a device is not looked at, nor are the others."""
    device = bearer(gateway.signer.device())
    for path in ("/api/v1/devices/challenge?x=1", "/api/v1/devices/policy"):
        await gateway.http.post(path, headers=device, json={"new": 1})
        assert _unknown(gateway.backends.seen[-1]) == []
    assert len(gateway.backends.seen) == 2


@pytest.mark.parametrize("method", TRANSCODED, ids=lambda m: m.path)
async def test_script_and_transcoder_find_the_same_call(gateway: Gateway, method: Any) -> None:
    """However the path is written: an RPC never gets a body that was looked at as another's."""
    plain = re.sub(r"\{.*?\}", "", method.template)
    path = re.sub(r"\{.*?\}", "a:b", method.template)
    last = path.rpartition("/")[2]
    spellings = {path, path.replace(last, f"%{ord(last[0]):02x}{last[1:]}")}
    # Behind a custom verb, as in :learn, the transcoder knows no slash.
    if ":" not in plain:
        spellings.add(f"{path}/")
    for token in (gateway.signer.user(), gateway.signer.device()):
        for spelling in spellings:
            await gateway.http.request(method.verb, f"{spelling}?x=1", headers=bearer(token))
    assert {seen.path for seen in gateway.backends.seen} == {method.path}
    assert len(gateway.backends.seen) in {len(spellings), 2 * len(spellings)}
    for seen in gateway.backends.seen:
        assert _unknown(seen) == (["q:x"] if method.rule.strict else [])


def _any_json(chance: random.Random, depth: int = 0) -> Any:
    texts = ["", "email", '"', "\\", '\\"', "}", "]{,:", "\u00e4\U0001f600", "\n", "a" * 50]
    kind = chance.randrange(4 if depth > 4 else 6)
    if kind == 0:
        return chance.choice([None, True, False, 0, -1.5e-7, 12345678901])
    if kind < 4:
        return chance.choice(texts)
    items = [_any_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 4:
        return items
    return {chance.choice(texts) + str(n): item for n, item in enumerate(items)}


def _bodies() -> Iterator[tuple[list[str], bytes]]:
    chance = random.Random(20261129)
    known = ["name", "orgId", "bundle", "description"]
    for _ in range(150):
        names = [chance.choice([*known, "Name", "x", "org_ID"]) for _ in range(4)]
        body = dict.fromkeys(names, "x") | {"bundle": _any_json(chance)}
        body |= {name: _any_json(chance) for name in body if name not in known}
        text = json.dumps(
            body,
            ensure_ascii=chance.random() < 0.5,
            indent=chance.choice([None, 0, 3]),
            separators=chance.choice([(",", ":"), (" , ", " : ")]),
        )
        yield [f"b:{name}" for name in body if name not in known], text.encode()


async def test_any_json_is_read_as_the_transcoder_reads_it(gateway: Gateway) -> None:
    """Strings that look like structure, escapes, nesting: the unknown names are found, exactly."""
    for unknown, body in _bodies():
        seen = await _sent(gateway, "POST", "/api/policies", content=body)
        assert _unknown(seen) == unknown, body


async def test_an_escaped_backslash_begins_no_escape(gateway: Gateway) -> None:
    """`\\\\u006e…` in JSON is a name with a backslash, which no field has."""
    for name, unknown in ((r"\u006eame", []), (r"\\u006eame", [r"b:\u006eame"])):
        body = f'{{"{name}": "x"}}'.encode()
        seen = await _sent(gateway, "POST", "/api/policies", content=body)
        assert _unknown(seen) == unknown


@pytest.mark.timeout(300)
async def test_a_large_policy_is_soon_read(gateway: Gateway) -> None:
    """A body of the largest size, of the kinds that cost most, costs the gateway little more."""
    for filler in ('"\\\\\\"' + "\\\\" * 400_000 + '"', "[" + "[]," * 300_000 + "1]"):
        body = f'{{"bundle":{filler},"x":1}}'.encode()
        assert 800_000 < len(body) < 1 << 20
        assert _unknown(await _sent(gateway, "POST", "/api/policies", content=body)) == ["b:x"]
