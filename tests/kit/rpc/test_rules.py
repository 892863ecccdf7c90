"""Requests against the rules of their protos."""

from __future__ import annotations

import importlib
import re

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from contract.contexts import CONTEXTS
from evergreen.v1 import (
    attestation_pb2,
    device_pb2,
    enrollment_pb2,
    identity_pb2,
    policy_pb2,
    rules_pb2,
    telemetry_pb2,
)
from servicekit.rpc.patterns import WORDS
from servicekit.rpc.rules import is_uuid, violations
from servicekit.texts import NAME_PATTERN, TEXT_PATTERN, name_fault, text_fault, tidy

ID = "0192e4a0-0000-7000-8000-000000000000"


def broken(message: Message) -> list[tuple[str, str]]:
    return [(v.field, v.rule) for v in violations(message)]


@pytest.mark.parametrize(
    ("message", "field", "rule"),
    [
        (identity_pb2.GetUserRequest(), "id", "is required"),
        (identity_pb2.GetUserRequest(id="x"), "id", "must be a UUID"),
        (identity_pb2.ListUsersRequest(page_size=-1), "pageSize", "must be at least 0"),
        (identity_pb2.ListUsersRequest(page_size=501), "pageSize", "must be at most 500"),
        (
            identity_pb2.ListUsersRequest(page_token="a" * 1025),
            "pageToken",
            "must have at most 1024 characters",
        ),
        (
            identity_pb2.CreateTenantRequest(name="N", code="-a"),
            "code",
            "must have small letters, digits and hyphens, and no hyphen at an end",
        ),
        (
            identity_pb2.UpdateTenantRequest(id=ID, name=""),
            "name",
            "must have at least 1 characters",
        ),
        (
            enrollment_pb2.CreateEnrollmentTokenRequest(org_id=ID, name="n", serials=["x" * 129]),
            "serials[0]",
            "must have at most 128 characters",
        ),
        (policy_pb2.CreatePolicyRequest(name="n", org_id=ID), "bundle", "is required"),
        (
            telemetry_pb2.ListDevicesRequest(search="nul\x00"),
            "search",
            "must not contain the character NUL",
        ),
    ],
)
def test_a_broken_rule_names_its_field(message: Message, field: str, rule: str) -> None:
    """The field as JSON names it, and the rule in words."""
    assert broken(message)[0] == (field, rule)


def test_all_broken_fields_are_named() -> None:
    """Not only the first one."""
    fields = [f for f, _ in broken(device_pb2.EnrollDeviceRequest(cpu_count=-1))]
    assert fields == ["cpuCount", "preSharedKey"]


def test_nested_messages_and_times_are_checked() -> None:
    """A path leads to the field; a time outside 1970 to 9999 is none."""
    request = device_pb2.ReportEventsRequest(device_id=ID)
    event = request.events.add(id="1", type="t")
    event.timestamp.seconds = -1
    assert broken(request) == [("events[0].timestamp", "must be a time from 1970 to 9999")]
    del request.events[:]
    request.events.add(id="1")
    assert ("events[0].type", "is required") in broken(request)


def test_what_is_sound_passes() -> None:
    """No rule is broken by an ordinary request."""
    assert broken(identity_pb2.CreateUserRequest(email="a@b.example", role="Admin")) == []
    assert broken(identity_pb2.CreateUserRequest(email="a@localhost", role="Owner")) == []


_BAD_NAMES = {
    "   ": "must not be blank",
    "\u200b": "must not contain the character U+200B (ZERO WIDTH SPACE)",
    "Line\nbreak": "must not contain the character U+000A",
    "\u202egnp.exe": "must not contain the character U+202E (RIGHT-TO-LEFT OVERRIDE)",
    "tab\tbed": "must not contain the character U+0009",
    "\ufeffSchool": "must not contain the character U+FEFF (ZERO WIDTH NO-BREAK SPACE)",
    "soft\u00adhyphen": "must not contain the character U+00AD (SOFT HYPHEN)",
    "two\u2028lines": "must not contain the character U+2028 (LINE SEPARATOR)",
    "\u3164": "must have a visible character",
    "\u200d\u2800\u200d": "must have a visible character",
}


@pytest.mark.parametrize("name", _BAD_NAMES)
@pytest.mark.parametrize(
    "message",
    [
        identity_pb2.CreateTenantRequest(),
        identity_pb2.UpdateTenantRequest(id=ID),
        identity_pb2.CreateEventCredentialRequest(),
        enrollment_pb2.CreateEnrollmentTokenRequest(org_id=ID),
        policy_pb2.CreatePolicyRequest(org_id=ID),
        policy_pb2.UpdatePolicyRequest(id=ID),
        attestation_pb2.CreateReferenceValueRequest(org_id=ID),
    ],
    ids=lambda message: message.DESCRIPTOR.name if isinstance(message, Message) else None,
)
def test_a_name_that_nobody_can_see_or_click_is_refused(message: Message, name: str) -> None:
    """Wherever people give a name, and with the character's own name."""
    named = type(message)()
    named.CopyFrom(message)
    named.name = name  # type: ignore[attr-defined]  # each of them has one
    assert ("name", _BAD_NAMES[name]) in broken(named)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("  Grundschule Überall ", "Grundschule Überall"),
        ("Cafe\u0301", "Café"),
        (
            "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("👩\u200d🏫 Lehrer 🏴\U000e0067\U000e0062\U000e007f", None),
        ("\u6771\u4eac\u3000\u5b66\u6821", None),
        ("a\u00a0b", None),
    ],
)
def test_names_are_trimmed_and_composed(typed: str, kept: str | None) -> None:
    """In the message itself; letters of all scripts, their joiners and emoji stay."""
    request = identity_pb2.CreateTenantRequest(name=typed)
    assert broken(request) == []
    assert request.name == (kept or typed)


def test_a_text_may_have_lines() -> None:
    """A description is trimmed, may be empty and have line breaks; nothing hides in it."""
    request = policy_pb2.UpdatePolicyRequest(id=ID, description=" two\nlines\t ")
    assert broken(request) == []
    assert request.description == "two\nlines"
    assert broken(policy_pb2.UpdatePolicyRequest(id=ID, description="  ")) == []
    request.description = "a\u202eb"
    assert broken(request)[0][0] == "description"


@pytest.mark.parametrize(
    ("email", "rule"),
    [
        ("owner\u200b@school.example", "must not contain the character U+200B (ZERO WIDTH SPACE)"),
        ("ow\u202ener@school.example", "must not contain the character U+202E"),
        ("a b@school.example", "must not contain the character U+0020 (SPACE)"),
        ("a\u3164@school.example", "must not contain the character U+3164 (HANGUL FILLER)"),
        (
            "\uff4f\uff57\uff4e\uff45\uff52@school.example",
            "must be written in plain characters: owner@school.example",
        ),
        ("\ufb01ona@school.example", "must be written in plain characters: fiona@school.example"),
        ("owner\uff20school.example", "must be written in plain characters: owner@school.example"),
        ("owner", "must be an e-mail address"),
        ("   ", "must not be blank"),
    ],
)
def test_an_address_has_one_spelling(email: str, rule: str) -> None:
    """Two addresses that look alike are not two users."""
    (found,) = broken(identity_pb2.CreateUserRequest(email=email, role="Admin"))
    assert found[0] == "email"
    assert found[1].startswith(rule)


def test_addresses_of_all_scripts_pass() -> None:
    """Trimmed and composed."""
    request = identity_pb2.CreateUserRequest(email=" ju\u0308rgen@schule.example ", role="Admin")
    assert broken(request) == []
    assert request.email == "jürgen@schule.example"


def test_every_field_that_people_name_things_with_has_the_rule() -> None:
    """None is forgotten in a message that is to come."""
    known = {
        "name": {rules_pb2.FieldRules.FORMAT_NAME},
        "description": {rules_pb2.FieldRules.FORMAT_TEXT},
        # An attempt to log in may be spelled in any way.
        "email": {rules_pb2.FieldRules.FORMAT_EMAIL, rules_pb2.FieldRules.FORMAT_UNSPECIFIED},
    }
    seen = set()
    for module in (attestation_pb2, device_pb2, enrollment_pb2, identity_pb2, policy_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            for field in message.fields if message.name.endswith("Request") else ():
                if field.name in known:
                    rule = field.GetOptions().Extensions[rules_pb2.rules]
                    if rule.pattern:
                        continue  # a word in a file, which a pattern bounds more narrowly
                    assert rule.format in known[field.name], field.full_name
                    seen.add(field.full_name)
    assert len(seen) >= 10


def test_every_pattern_has_words() -> None:
    """People are told what to write, not a regular expression."""
    seen = {
        field.GetOptions().Extensions[rules_pb2.rules].pattern
        for context in (*CONTEXTS, "device", "person")
        for message in importlib.import_module(
            f"evergreen.v1.{context}_pb2"
        ).DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert seen - {""} == WORDS.keys()


@given(st.text(alphabet=st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])))
def test_the_documented_pattern_is_the_rule(text: str) -> None:
    """What the OpenAPI document says of names is what is applied to them."""
    text = tidy(text)
    assert (re.search(NAME_PATTERN, text) is not None) is (name_fault(text) is None)
    assert (re.search(TEXT_PATTERN, text) is not None) is (text_fault(text) is None)


@given(st.text(max_size=60))
def test_uuid_check_never_raises_and_takes_only_the_long_form(text: str) -> None:
    """Braces, `urn:` and missing hyphens are refused."""
    assert is_uuid(text) is False or len(text) == 36
    assert not is_uuid(ID.replace("-", ""))
    assert is_uuid(ID)
