"""Policies full of awkward text: as hypothesis strategies, and from a plain generator."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import strategies as st

AWKWARD = (
    "\"\\/<>&'\u2028\u2029\x01\b\f\n\r\t\x1f\x7f\x80\xe9\u017f\u212a\u0130\u0301\ufeff\ufffd\uffff"
    "\U0001f600\u200d\U0010ffff{}[]:, abc"
)

texts = st.text(
    st.one_of(
        st.sampled_from(AWKWARD),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=8,
)
maps = st.none() | st.dictionaries(texts, texts, max_size=3)


def lists(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A list that may be empty, or null."""
    return st.none() | st.lists(items, max_size=2)


def objects(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object each of whose members may be absent."""
    return st.fixed_dictionaries({}, optional=members)


documents = objects(
    apps=objects(required=lists(objects(id=texts, branch=texts, source=texts))),
    updates=objects(channel=texts, reboot_required=st.booleans(), maintenance_windows=lists(texts)),
    browser=objects(
        homepage=texts,
        extensions=lists(texts),
        allow_dev_tools=st.booleans(),
        managed_bookmarks=lists(objects(name=texts, url=texts)),
    ),
    network=objects(
        wifi=lists(
            objects(
                ssid=texts,
                passphrase=texts,
                security=texts,
                hidden=st.booleans(),
                metered=st.booleans(),
                eap=maps,
            )
        ),
        vpns=lists(
            objects(
                name=texts,
                service_type=texts,
                data=maps,
                secrets=maps,
                auto_connect=st.booleans(),
            )
        ),
        vpn_dns=lists(texts),
    ),
    security=objects(
        selinux_enforce=st.booleans(),
        ssh_enabled=st.booleans(),
        usbguard=st.booleans(),
        usbguard_rules=lists(texts),
        allow_root_login=st.booleans(),
    ),
)
"""Authored device documents, as JSON values."""


def random_document(random: Random) -> dict[str, Any]:
    """An authored device document, larger than those of the strategies and made much faster."""

    def text() -> str:
        return "".join(random.choices(AWKWARD, k=random.choice((0, 1, 1, 2, 3, 8))))

    def flag() -> bool:
        return random.random() < 0.5

    def pairs() -> dict[str, str] | None:
        return {text(): text() for _ in range(random.choice((0, 1, 2, 5)))} if flag() else None

    def many(item: Callable[[], Any]) -> list[Any] | None:
        return [item() for _ in range(random.choice((0, 1, 2)))] if random.random() < 0.8 else None

    def some(**members: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
        return lambda: {name: make() for name, make in members.items() if random.random() < 0.8}

    app = some(id=text, branch=text, source=text)
    bookmark = some(name=text, url=text)
    wifi = some(ssid=text, passphrase=text, security=text, hidden=flag, metered=flag, eap=pairs)
    vpn = some(name=text, service_type=text, data=pairs, secrets=pairs, auto_connect=flag)
    return some(
        apps=some(required=lambda: many(app)),
        updates=some(channel=text, reboot_required=flag, maintenance_windows=lambda: many(text)),
        browser=some(
            homepage=text,
            extensions=lambda: many(text),
            allow_dev_tools=flag,
            managed_bookmarks=lambda: many(bookmark),
        ),
        network=some(wifi=lambda: many(wifi), vpns=lambda: many(vpn), vpn_dns=lambda: many(text)),
        security=some(
            selinux_enforce=flag,
            ssh_enabled=flag,
            usbguard=flag,
            usbguard_rules=lambda: many(text),
            allow_root_login=flag,
        ),
    )()
