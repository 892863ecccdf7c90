"""The fields of a DOCUMENT: which are one value, and which are lists of items with a name each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `section.name`.

    A list with `items` is a set: `key` is the member that names an item, and the item itself is its
    name where `key` is empty. Any other field is one value, lists whose order counts included.
    """

    path: str
    items: bool = False
    key: str = ""

    def of(self, document: Mapping[str, Any]) -> Any:
        """The field's value in a document; `None` where it is absent."""
        section, _, name = self.path.partition(".")
        return (document.get(section) or {}).get(name)

    def named(self, document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What there is to compare: the items with their names, or the value without one.

        A list that is empty is one that is absent: devices make no difference.
        """
        value = self.of(document)
        if self.items:
            for item in value or ():
                yield (str(item[self.key]) if self.key else item), item
        else:
            yield "", value or None if isinstance(value, list) else value


FIELDS: Final = (
    Field("apps.required", items=True, key="id"),
    Field("updates.channel"),
    Field("updates.reboot_required"),
    Field("updates.maintenance_windows"),
    Field("browser.homepage"),
    Field("browser.extensions", items=True),
    Field("browser.allow_dev_tools"),
    Field("browser.managed_bookmarks", items=True, key="url"),
    Field("network.wifi", items=True, key="ssid"),
    Field("network.vpns", items=True, key="name"),
    Field("network.vpn_dns"),
    Field("security.selinux_enforce"),
    Field("security.ssh_enabled"),
    Field("security.usbguard"),
    Field("security.usbguard_rules"),
    Field("security.allow_root_login"),
)
"""All fields, in the order of the DOCUMENT."""
