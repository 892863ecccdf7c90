"""The policy editor of the released web console: what it sends, and what it makes of an answer.

Written from its wire contract: one form, its defaults, its own checks, and the body that it sends
with every create and update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Form:
    """The editor's fields, as a new policy has them."""

    name: str = ""
    org_id: str = ""
    version: str = "1.0.0"
    update_channel: str = "stable"
    homepage_url: str = "https://www.evergreenos.dev"
    allow_popups: bool = False
    wifi_ssid: str = "EvergreenNet"
    wifi_security: str = "wpa2"
    disk_encryption: bool = True
    lock_after_minutes: float = 5
    apps: list[str] = field(default_factory=lambda: ["chrome"])
    signed: bool = False

    @classmethod
    def opened(cls, policy: dict[str, Any]) -> Form:
        """The form when an existing policy, as GET answers it, is opened."""
        bundle = policy.get("bundle") or {}
        configuration = bundle.get("configuration") or {}
        browser = configuration.get("browser") or {}
        networks = (configuration.get("network") or {}).get("wifiNetworks") or [{}]
        security = configuration.get("security") or {}
        apps = configuration.get("apps")
        return cls(
            name=policy["name"],
            org_id=policy["orgId"],
            version=policy["version"],
            update_channel=configuration.get("updateChannel", "stable"),
            homepage_url=browser.get("homepageUrl", ""),
            allow_popups=bool(browser.get("allowPopups")),
            wifi_ssid=networks[0].get("ssid", ""),
            wifi_security=networks[0].get("security", "wpa2"),
            disk_encryption=bool(security.get("diskEncryption", True)),
            lock_after_minutes=float(security.get("lockAfterMinutes", 5)),
            apps=["chrome"] if apps is None else [app["id"] for app in apps],
            signed=policy["signed"],
        )

    def problems(self) -> list[str]:
        """What the editor itself refuses to send."""
        texts = {
            "name": self.name,
            "version": self.version,
            "orgId": self.org_id,
            "homepageUrl": self.homepage_url,
            "wifi ssid": self.wifi_ssid,
        }
        found = [f"{name} is empty" for name, text in texts.items() if not text.strip()]
        if not self.apps:
            found.append("there is no app")
        if self.lock_after_minutes <= 0:
            found.append("lockAfterMinutes is not positive")
        return found

    def body(self, policy_id: str = "new") -> dict[str, Any]:
        """The body of a create (for the policy `new`) or of an update."""
        signature = (
            {"status": "signed", "signer": f"{self.org_id}-policy-signer"}
            if self.signed
            else {"status": "unsigned"}
        )
        networks = [{"ssid": self.wifi_ssid, "security": self.wifi_security}]
        bundle = {
            "id": policy_id,
            "name": self.name,
            "version": self.version,
            "orgId": self.org_id,
            "configuration": {
                "apps": [{"id": app, "target": "all"} for app in self.apps],
                "updateChannel": self.update_channel,
                "browser": {"homepageUrl": self.homepage_url, "allowPopups": self.allow_popups},
                "network": {"wifiNetworks": networks if self.wifi_ssid else []},
                "security": {
                    "diskEncryption": self.disk_encryption,
                    "lockAfterMinutes": self.lock_after_minutes,
                },
            },
            "signature": signature,
        }
        return {"name": self.name, "orgId": self.org_id, "bundle": bundle, "signed": self.signed}
