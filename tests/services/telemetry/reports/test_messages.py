"""What a person reads of an event: sentences made from the released agent's fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.telemetry.reports.messages import MAX_MESSAGE, message_of, stored_message


@pytest.mark.parametrize(
    ("type_", "payload", "message"),
    [
        (
            "login.failure",
            {"user": "anna", "service": "sshd", "reason": "bad_password", "host": "lab-3"},
            "login failed for anna at sshd on lab-3: bad_password",
        ),
        ("login.success", {"user": "anna", "service": "gdm"}, "login succeeded for anna at gdm"),
        (
            "app.install.failure",
            {"app": "org.gnome.Maps", "error": "no\nroom"},
            "installing an application failed (org.gnome.Maps): no room",
        ),
        ("app.remove.success", {"app": "org.gnome.Maps"}, "application removed: org.gnome.Maps"),
        (
            "network.profile.failure",
            {"ssid": "Class A", "error": "denied"},
            "setting up a Wi-Fi network failed (Class A): denied",
        ),
        (
            "security.ssh.config.success",
            {"root_login": "disabled"},
            "SSH server configured: root login disabled",
        ),
        ("update.reboot.deferred", {"reason": "no_window"}, "reboot deferred: no_window"),
        # It says that the evidence was taken, and nothing of what it was worth.
        ("attestation.boot.success", {"quote_count": "2"}, "boot evidence sent (2 quotes)"),
        # What the payload says itself comes first; what it has no field for is left out.
        ("login.failure", {"message": "three times", "user": "anna"}, "three times"),
        ("login.failure", {"user": ["anna"]}, "login failed"),
        ("login.failure", None, "login failed"),
        ("policy.apply.success", {"version": 7}, "policy applied: version 7"),
        # Types that are not known.
        ("printer.jammed", {"user": "anna", "error": "tray 2", "n": 1}, None),
        ("printer.jammed", {"n": 1}, "printer.jammed"),
        ("printer.jammed", ["anna"], "printer.jammed"),
    ],
)
def test_a_message_is_made_from_the_fields(type_: str, payload: Any, message: str | None) -> None:
    """In plain English, one line, with all that someone would look for."""
    assert message_of(type_, payload) == (message or "printer.jammed: user anna, error tray 2")


def test_fields_of_any_size_and_kind_fit_into_a_line() -> None:
    """A device may send anything; a message stays short and can be stored."""
    odd = {"user": "\0\ud800\r\n" * 5_000, "service": 10**5_000, "rhost": 1e400, "host": True}
    for type_ in ("login.failure", "x" * 256):
        made = message_of(type_, odd | {"reason": "r" * 5_000, "error": {"a": 1}, "app": 2**70})
        made.encode()
        assert len(made) <= MAX_MESSAGE
        assert made.isprintable()


def test_events_that_are_stored_already_are_shown_with_a_message() -> None:
    """Their rows have the type in its place."""
    payload = json.dumps({"user": "anna"})
    assert stored_message("login.failure", "login.failure", payload) == "login failed for anna"
    assert stored_message("login.failure", "login.failure", None) == "login failed"
    assert stored_message("login.failure", "said", payload) == "said"
    assert stored_message("x", "x", payload) == "x"
