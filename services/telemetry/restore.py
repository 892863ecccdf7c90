"""What a backup and a restore have to know of telemetry's schema.

Events go into the partitions that the migrations make anew; nothing else has to be repaired.
"""

from __future__ import annotations

from typing import Final

from servicekit.data.backup import Tables

TABLES: Final = Tables(
    made_anew=frozenset(
        {
            "event_relay",  # how far events were published to a stream
            "event_week",  # the weeks that have partitions
            "device_text",  # filled by triggers
            "quarantine_use",  # likewise
            "storage_use",  # what was stored today
        }
    ),
    derived={"event": {"id_day": "telemetry.event_day(event_id)"}},
)
