"""How a bundle lies in the database: in two parts, so that the previous release can read it.

That release refuses the console's `signature` and the passphrases of its networks as unknown
fields, and would record the passphrases in the audit log. Both lie in a column of their own,
`form_extra`, beside the form without them. A document is one part. Of a template, which that
release takes for no policy and hides nothing of, it reads masks; the whole lies in `form_extra`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from services.policy.authoring.configuration import is_console_form
from services.policy.authoring.secret_values import MASKED, console_networks, hide
from services.policy.authoring.templates import is_template


def as_text(bundle: Any) -> str:
    """A bundle as the service keeps it; reading what was stored gives the same text."""
    return joined(*parted(_dumps(bundle)))


def parted(authored: str) -> tuple[str, str | None]:
    """The two columns of an authored text."""
    bundle = json.loads(authored)
    if is_template(bundle):
        hidden = hide(bundle, MASKED)
        return (authored, None) if hidden == bundle else (_dumps(hidden), authored)
    if not is_console_form(bundle):
        return authored, None
    extra: dict[str, Any] = {}
    passphrases: list[list[str]] = []

    def without(networks: list[Any]) -> list[Any]:
        for network in networks:
            if isinstance(network, Mapping) and "passphrase" in network:
                passphrases.append([network["ssid"], network["passphrase"]])
        return [
            {key: value for key, value in network.items() if key != "passphrase"}
            if isinstance(network, Mapping)
            else network
            for network in networks
        ]

    form = console_networks(bundle, without)
    if "signature" in bundle:
        extra["signature"] = bundle["signature"]
        form = {key: value for key, value in form.items() if key != "signature"}
    if passphrases:
        extra["passphrases"] = passphrases
    return _dumps(form), _dumps(extra) if extra else None


def joined(authored: str, extra: str | None) -> str:
    """The authored text of the two columns.

    The previous release changes the first one only: a passphrase whose network is gone is dropped.
    """
    if extra is None:
        return authored
    bundle, more = json.loads(authored), json.loads(extra)
    if is_template(bundle):
        return extra
    if not is_console_form(bundle):
        return authored
    passphrases = dict(more.get("passphrases", ()))

    def with_passphrases(networks: list[Any]) -> list[Any]:
        return [
            {**network, "passphrase": passphrases[network["ssid"]]}
            if isinstance(network, Mapping) and network.get("ssid") in passphrases
            else network
            for network in networks
        ]

    form = console_networks(bundle, with_passphrases)
    return _dumps({**form, "signature": more["signature"]} if "signature" in more else form)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
