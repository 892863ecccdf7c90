"""The gateway's configuration as text."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from contract import addresses
from contract.access import ACCESS, Audience, Rule
from contract.addresses import HTTP
from contract.contexts import CONTEXTS
from contract.rows import Address, RateClass
from deploy.gateway import Endpoints, GatewaySettings, native, render
from deploy.gateway.api import Method, json_paths, load
from deploy.gateway.errors import H_ERROR
from deploy.gateway.settings import DESCRIPTORS
from servicekit.rpc import server as grpc_server
from servicekit.security.tls import Tls
from tests.support import yaml_text


@pytest.fixture
def settings() -> GatewaySettings:
    """Every context on its sockets."""
    return GatewaySettings(
        directory=Path("/conf"),
        port=8443,
        certificate_file=Path("/tls/crt"),
        private_key_file=Path("/tls/key"),
        admin="unix:/run/admin.sock",
        contexts={c: Endpoints(grpc=f"unix:/run/{c}.gw", http=f"{c}:80") for c in CONTEXTS},
    )


def _listener(settings: GatewaySettings) -> Any:
    return yaml_text.load(render(settings)["listener.yaml"])["resources"][0]


def test_only_addresses_differ_between_environments(settings: GatewaySettings) -> None:
    """Other addresses of the upstreams change the clusters' file and no other."""
    moved = dataclasses.replace(
        settings, contexts={c: Endpoints(f"{c}.svc:5000", f"{c}.svc:80") for c in CONTEXTS}
    )
    before, after = render(settings), render(moved)
    assert [name for name in before if before[name] != after[name]] == ["clusters.yaml"]


def test_calls_by_an_old_name_alone_are_logged(settings: GatewaySettings) -> None:
    """An address that differs by its port alone cannot be told from the new one."""
    moved = dataclasses.replace(settings, public_url="https://new.example:8443")
    plain = _access_logs(moved)
    other_port = dataclasses.replace(moved, former_public_urls=("https://new.example",))
    assert _access_logs(other_port) == plain
    old = dataclasses.replace(
        moved, former_public_urls=("https://old.example:8443", "https://older.example")
    )
    (*before, added) = _access_logs(old)
    assert before == plain
    header = added["filter"]["header_filter"]["header"]
    assert header["name"] == ":authority"
    pattern = re.compile(header["string_match"]["safe_regex"]["regex"])
    for host in ("old.example", "OLD.example:8443", "older.example"):
        assert pattern.fullmatch(host)
    for host in ("new.example", "oldXexample", "my-old.example", "old.example.net"):
        assert not pattern.fullmatch(host)


def _access_logs(settings: GatewaySettings) -> Any:
    chain = _listener(settings)["filter_chains"][0]
    return chain["filters"][0]["typed_config"]["access_log"]


def test_every_public_rpc_has_a_route_and_no_internal_one(settings: GatewaySettings) -> None:
    """The routing table is the access table."""
    http = _listener(settings)["filter_chains"][0]["filters"][0]["typed_config"]
    routes = http["route_config"]["virtual_hosts"][0]["routes"]
    paths = {route["match"].get("path", "") for route in routes}
    for path, rule in ACCESS.items():
        assert (path in paths) is (rule.audience is not Audience.INTERNAL), path
    for route in routes:
        requirement = route["typed_per_filter_config"]["envoy.filters.http.jwt_authn"]
        assert requirement.get("disabled") or requirement["requirement_name"]


def test_new_descriptors_are_a_new_listener(settings: GatewaySettings, tmp_path: Path) -> None:
    """Envoy reads the descriptors again although their file has the same name."""
    copy = tmp_path / "descriptors.binpb"
    copy.write_bytes(DESCRIPTORS.read_bytes())
    moved = dataclasses.replace(settings, descriptors=copy)
    before = render(moved)["listener.yaml"]
    # An empty file descriptor set appended is another file with the same meaning.
    copy.write_bytes(DESCRIPTORS.read_bytes() + b"\x0a\x00")
    assert render(moved)["listener.yaml"] != before


def test_a_missing_context_is_named(settings: GatewaySettings) -> None:
    """No gateway without an address for each context."""
    some = {c: e for c, e in settings.contexts.items() if c != "audit"}
    with pytest.raises(ValueError, match="audit"):
        render(dataclasses.replace(settings, contexts=some))


def test_a_single_path_takes_what_its_family_takes() -> None:
    """`POST /api/things/new` does not hide `GET /api/things/{id}`."""
    rule = Rule(context="policy", audience=Audience.PUBLIC, rate=RateClass.OPEN)
    forms = [("GET", "/api/things/{id}"), ("POST", "/api/things/new"), ("PUT", "/api/x/{id}/y")]
    methods = [Method(f"/p.S/M{n}", "p.S", rule, *form) for n, form in enumerate(forms)]
    single, family, other = json_paths(methods)
    assert (single.template, single.verbs, single.regex) == (
        "/api/things/new",
        ("GET", "POST"),
        None,
    )
    assert (family.verbs, family.regex) == (("GET",), "/api/things/[^/]+")
    assert (other.verbs, other.regex) == (("PUT",), "/api/x/[^/]+/y")


def test_gateway_and_services_mean_the_same_metadata() -> None:
    """The name is written twice, so that the launcher need not load gRPC."""
    assert H_ERROR == grpc_server.H_ERROR


def test_on_a_network_both_sides_show_certificates(settings: GatewaySettings) -> None:
    """The gateway takes a service by the name in its certificate, and has one of its own."""
    own = Tls(Path("/in/ca"), Path("/in/crt"), Path("/in/key"))
    files = render(dataclasses.replace(settings, inside=own))
    clusters = {c["name"]: c for c in yaml_text.load(files["clusters.yaml"])["resources"]}
    assert "transport_socket" not in clusters["policy"]  # a socket
    tls = clusters["policy-http"]["transport_socket"]["typed_config"]["common_tls_context"]
    names = tls["combined_validation_context"]["default_validation_context"]
    assert [n["matcher"] for n in names["match_typed_subject_alt_names"]] == [{"exact": "policy"}]
    for secret in ("gateway", "inside", "inside-ca"):
        assert len(yaml_text.load(files[f"secret-{secret}.yaml"])["resources"]) == 1


def _method_in(verbs: tuple[str, ...]) -> Any:
    return {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(verbs)}}}


def test_the_console_keeps_its_cookie_and_nobody_elses_route_does(
    settings: GatewaySettings,
) -> None:
    """Its pages are under the same origin; tokens go to it and to no service but identity's pages,
    which are there for cookies."""
    with_console = dataclasses.replace(settings, console="http://console:3000")
    http = _listener(with_console)["filter_chains"][0]["filters"][0]["typed_config"]
    routes = [r for r in http["route_config"]["virtual_hosts"][0]["routes"] if "route" in r]
    console = [r["match"] for r in routes if r["route"]["cluster"] == "console"]
    assert {"path": "/"} in console
    assert {"path_separated_prefix": "/api/auth"} in console
    of_pages = [
        {**native.matching(row), "headers": [_method_in(row.verbs)]} for row in HTTP if row.cookies
    ]
    for route in routes:
        removed = route.get("request_headers_to_remove", [])
        is_console = route["route"]["cluster"] == "console"
        if is_console:
            assert removed == []
        elif removed == ["authorization"]:
            assert route["match"] in of_pages
            assert route["route"]["cluster"] == "identity-http"
        else:
            assert removed == ["authorization", "cookie"]
    with pytest.raises(ValueError, match="console"):
        render(dataclasses.replace(settings, console="console:3000"))


def test_a_row_is_all_that_an_address_of_users_needs(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token, rate and timeout follow; another method is answered with 405."""
    row = Address(
        path="/api/uploads",
        verbs=("POST",),
        served_by="telemetry",
        audience=Audience.USER,
        rate=RateClass.USER,
        timeout=90,
    )
    monkeypatch.setattr(addresses, "PORTAL", (*addresses.PORTAL, row))
    http = _listener(settings)["filter_chains"][0]["filters"][0]["typed_config"]
    routes = http["route_config"]["virtual_hosts"][0]["routes"]
    upload, other = (r for r in routes if r["match"].get("path") == row.path)
    assert upload["route"]["cluster"] == "telemetry-http"
    assert upload["route"]["timeout"] == "90s"
    assert "reset" not in upload["route"]["retry_policy"]["retry_on"]
    assert "priority" not in upload["route"]
    assert upload["metadata"]["filter_metadata"]["evergreen"]["limit"] == "user"
    token = upload["typed_per_filter_config"]["envoy.filters.http.jwt_authn"]
    assert token["requirement_name"] == "callers"
    assert upload["request_headers_to_remove"] == ["authorization", "cookie"]
    assert other["direct_response"]["status"] == 405


def test_no_read_changes_anything() -> None:
    """A page of another site may have a browser send reads with its cookie."""
    for method in load(DESCRIPTORS):
        if method.verb == "GET":
            assert not method.rule.writes, method.path
