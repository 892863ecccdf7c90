"""The structs of the released agent, as its wire contract names them."""

from __future__ import annotations

from tests.fakes.agent.gojson import Bool, Slice, StringMap, Struct, Text

APP = Struct(id=Text(), branch=Text(), source=Text())
BOOKMARK = Struct(name=Text(), url=Text())
WIFI = Struct(
    ssid=Text(),
    passphrase=Text(),
    security=Text(),
    hidden=Bool(),
    metered=Bool(),
    eap=StringMap(),
)
VPN = Struct(
    name=Text(),
    service_type=Text(),
    data=StringMap(),
    secrets=StringMap(),
    auto_connect=Bool(),
)
DOCUMENT = Struct(
    apps=Struct(required=Slice(APP)),
    updates=Struct(channel=Text(), reboot_required=Bool(), maintenance_windows=Slice(Text())),
    browser=Struct(
        homepage=Text(),
        extensions=Slice(Text()),
        allow_dev_tools=Bool(),
        managed_bookmarks=Slice(BOOKMARK),
    ),
    network=Struct(wifi=Slice(WIFI), vpns=Slice(VPN), vpn_dns=Slice(Text())),
    security=Struct(
        selinux_enforce=Bool(),
        ssh_enabled=Bool(),
        usbguard=Bool(),
        usbguard_rules=Slice(Text()),
        allow_root_login=Bool(),
    ),
)
ENVELOPE = Struct(version=Text(), signature=Text(), policy=DOCUMENT, device_token=Text())
ENROLLED = Struct(device_id=Text(), device_token=Text(), policy=ENVELOPE)
