"""What devices say, as bytes: the JSON of the released agent, made from a number each time.

A state or an event is determined by its device and its time, so a queue has to keep the time
alone, however many devices wait through however long an outage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

_APPS: Final = (
    "org.gnome.Calculator", "org.gnome.TextEditor", "org.gnome.Loupe", "org.gnome.Evince",
    "org.gnome.Snapshot", "org.libreoffice.LibreOffice", "org.mozilla.firefox", "org.gimp.GIMP",
    "org.inkscape.Inkscape", "org.kde.kolourpaint", "org.kde.kalgebra", "org.kde.marble",
    "org.geogebra.GeoGebra", "org.musescore.MuseScore", "org.audacityteam.Audacity",
    "org.videolan.VLC", "org.stellarium.Stellarium", "edu.mit.Scratch", "com.github.tuxmath",
    "org.tuxpaint.Tuxpaint",
)  # fmt: skip
_VARIANTS: Final = 8
_KINDS: Final = (
    ("app.installed", "info"),
    ("update.downloaded", "info"),
    ("login.failed", "warning"),
    ("disk.smart", "error"),
)
_DISK: Final = 256_000_000_000


def _apps(variant: int) -> str:
    apps = [
        {"id": name, "version": f"{3 + variant}.{number}.1", "branch": "stable"}
        for number, name in enumerate(_APPS)
    ]
    return json.dumps(apps, separators=(",", ":"))


_APP_LISTS: Final = tuple(_apps(variant) for variant in range(_VARIANTS))


def enroll_body(serial: str, pre_shared_key: str) -> bytes:
    """The request of a device that has no identity yet."""
    request: dict[str, Any] = {
        "serial": serial,
        "model": "Evergreen Book 14",
        "cpu_model": "Simulated CPU",
        "cpu_count": 4,
        "total_ram_bytes": 8 << 30,
        "has_tpm": True,
    }
    if pre_shared_key:
        request["pre_shared_key"] = pre_shared_key
    return json.dumps(request, separators=(",", ":")).encode()


@lru_cache(maxsize=256)
def poll_body(version: str) -> bytes:
    """The question for a newer policy."""
    return json.dumps({"current_version": version}, separators=(",", ":")).encode()


def state_body(device_id: str, number: int, time_ns: int) -> bytes:
    """The state of a device at a time."""
    minutes = time_ns // 60_000_000_000 + number * 7
    free = 40_000_000_000 + (number * 7_919_000_000 + minutes * 1_048_576) % 180_000_000_000
    battery = 20 + minutes % 320 / 4
    return (
        f'{{"device_id":"{device_id}","state":{{"timestamp":"{rfc3339(time_ns)}",'
        f'"installed_apps":{_APP_LISTS[number % _VARIANTS]},"update_status":"idle",'
        f'"disk_total_bytes":{_DISK},"disk_free_bytes":{free},"battery_percent":{battery},'
        '"last_error":""}}'
    ).encode()


def events_body(device_id: str, ids: Sequence[int]) -> bytes:
    """A batch of events; an event's id is its time in nanoseconds."""
    events = ",".join([_event(time_ns) for time_ns in ids])
    return f'{{"device_id":"{device_id}","events":[{events}]}}'.encode()


def _event(time_ns: int) -> str:
    variant = time_ns // 1000 % 97
    kind, severity = _KINDS[variant % len(_KINDS)]
    app = _APPS[variant % len(_APPS)]
    return (
        f'{{"id":"{time_ns}","type":"{kind}","timestamp":"{rfc3339(time_ns)}","payload":'
        f'{{"severity":"{severity}","message":"{kind} of {app}",'
        f'"ref":"app/{app}/x86_64/stable","bytes":{variant << 20}}}}}'
    )


def rfc3339(time_ns: int) -> str:
    """A time as Go's `time.RFC3339Nano` writes it, in UTC."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    whole = _whole(seconds)
    if not nanos:
        return f"{whole}Z"
    return f"{whole}.{nanos:09d}".rstrip("0") + "Z"


@lru_cache(maxsize=4096)
def _whole(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
