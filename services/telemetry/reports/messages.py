"""What a person reads of an event, made from the fields of its payload.

The released agent's payloads have no `message`: what happened is in fields such as `user`, `app`
and `error`. The sentences are stored with their events, so that a search finds what is in them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_MESSAGE: Final = 1_024
"""Characters of a message."""
_MAX_VALUE: Final = 256
"""Characters of a field in a message."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

_ERROR: Final = ": {error}"
_LOGIN: Final = (" for {user}", " at {service}", " from {rhost}", " on {host}")
_SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    "app.install.failure": ("installing an application failed", " ({app})", _ERROR),
    "app.install.success": ("application installed", ": {app}"),
    "app.remove.failure": ("removing an application failed", " ({app})", _ERROR),
    "app.remove.success": ("application removed", ": {app}"),
    "attestation.boot.failure": ("sending boot evidence failed", _ERROR),
    # The agent says "success" when its evidence was taken, whatever it says.
    "attestation.boot.success": ("boot evidence sent", " ({quote_count} quotes)"),
    "browser.policy.updated": ("browser policy written", " to {path}"),
    "login.failure": ("login failed", *_LOGIN, ": {reason}"),
    "login.success": ("login succeeded", *_LOGIN),
    "network.profile.failure": ("setting up a Wi-Fi network failed", " ({ssid})", _ERROR),
    "network.profile.success": ("Wi-Fi network set up", ": {ssid}"),
    "network.vpn.failure": ("setting up a VPN failed", " ({name})", _ERROR),
    "network.vpn.success": ("VPN set up", ": {name}"),
    "policy.apply.failure": ("applying a policy failed", " (version {version})", _ERROR),
    "policy.apply.success": ("policy applied", ": version {version}"),
    "security.selinux.failure": ("setting up SELinux failed", _ERROR),
    "security.selinux.success": ("SELinux set up", ": {state}"),
    "security.ssh.config.failure": ("configuring the SSH server failed", _ERROR),
    "security.ssh.config.success": ("SSH server configured", ": root login {root_login}"),
    "security.ssh.failure": ("switching the SSH server failed", _ERROR),
    "security.ssh.success": ("SSH server switched", ": {state}"),
    "security.usbguard.failure": ("setting up USBGuard failed", _ERROR),
    "security.usbguard.rules": ("USBGuard rules written", ": {count}"),
    "security.usbguard.success": ("USBGuard set up", ": {state}"),
    "update.apply.failure": ("changing the update channel failed", " ({channel})", _ERROR),
    "update.apply.success": ("update channel changed", ": {channel}"),
    "update.reboot.deferred": ("reboot deferred", " until {scheduled_for}", ": {reason}"),
    "update.reboot.failure": ("rebooting for an update failed", _ERROR),
    "update.reboot.triggered": ("reboot for an update begun", " at {time}"),
    "update.rollback.failure": ("rolling back an update failed", _ERROR),
    "update.rollback.triggered": ("rollback of an update begun", " to {target}"),
}
"""By type: what happened, and what is added where the payload has the field."""
_ADDITION: Final = re.compile(r"(.*)\{(\w+)\}(.*)")


def _addition(text: str) -> tuple[str, str, str]:
    found = _ADDITION.fullmatch(text)
    assert found is not None
    before, field, behind = found.groups()
    return before, field, behind


_TEXTS: Final = {
    type_: (said, tuple(map(_addition, additions)))
    for type_, (said, *additions) in _SENTENCES.items()
}
_OTHERS: Final = ("user", "app", "name", "ssid", "service", "version", "state", "reason", "error")
"""Fields that are worth telling of a type that is not known."""


def message_of(type_: str, payload: Any) -> str:
    """What a person reads of an event; its type when the payload has nothing to tell."""
    fields = payload if isinstance(payload, dict) else {}
    said = fields.get("message", fields.get("msg"))
    if isinstance(said, str) and (said := said.strip()):
        return said[:MAX_MESSAGE]
    if (sentence := _TEXTS.get(type_)) is None:
        told = [f"{name} {text}" for name in _OTHERS if (text := _text(fields.get(name)))]
        return f"{type_}: {', '.join(told)}"[:MAX_MESSAGE] if told else type_
    message, additions = sentence
    for before, field, behind in additions:
        if text := _text(fields.get(field)):
            message += f"{before}{text}{behind}"
    return message[:MAX_MESSAGE]


def stored_message(type_: str, message: str, payload: str | None) -> str:
    """The message of an event in the database.

    Events of releases up to 0.1.0 have their type there, if their payload had no message.
    """
    if message != type_ or type_ not in _TEXTS:
        return message
    return message_of(type_, None if payload is None else json.loads(payload))


def _text(value: Any) -> str:
    """A field's value as a part of a line; empty when it is none that a line can hold."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if not isinstance(value, str):
        # Python writes no integer of more than 4,300 digits.
        return str(value) if isinstance(value, float) or abs(value) < 1 << 64 else ""
    return _CONTROL.sub(" ", value[:_MAX_VALUE]).strip()
