"""What `evergreen doctor` hears of the services."""

from __future__ import annotations

import datetime
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cli.doctor import services
from cli.doctor.finding import Severity, findings
from servicekit.ids import now
from servicekit.security import mode
from tests.support.doctor import codes, status, told
from tests.support.stack import free_port


@contextmanager
def operations(metrics: str, missing: tuple[str, ...] = ()) -> Iterator[str]:
    """A service's operations port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_ready = self.path == "/readyz"
            body = (json.dumps({"missing": missing}) if is_ready else metrics).encode()
            self.send_response(503 if is_ready and missing else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


async def test_services_that_lag_behind() -> None:
    """Not ready, of another release, with a stale feed and a backlog; each is named."""
    moment = now()
    at = moment.timestamp()
    well = (
        'evergreen_build_info{version="2.0",schema_version="9"} 1\n'
        f'evergreen_feed_last_read_timestamp_seconds{{feed="tenants"}} {at - 5}\n'
        "evergreen_outbox_oldest_seconds 0.5\n"
    )
    ill = (
        'evergreen_build_info{version="1.9",schema_version="8"} 1\n'
        f'evergreen_feed_last_read_timestamp_seconds{{feed="tenants"}} {at - 5}\n'
        f'evergreen_feed_last_read_timestamp_seconds{{feed="lock_outs"}} {at - 300}\n'
        "evergreen_outbox_oldest_seconds 600\n"
    )
    with operations(well) as one, operations(ill, ("identity",)) as other:
        addresses = {"policy": one, "audit": other}
        checks = await services.checks(addresses, "2.0", lambda: moment)
        good = await services.checks({"policy": one}, "2.0", lambda: moment)
        away = await services.checks({"policy": f"http://127.0.0.1:{free_port()}"})
    found = {finding.code: finding for finding in findings(checks)}
    assert list(found) == ["SERVICE_NOT_READY", "VERSION_MISMATCH", "FEED_STALE", "EVENTS_WAIT"]
    assert found["SERVICE_NOT_READY"].what == "audit lacks: identity"
    assert "audit is 1.9" in found["VERSION_MISMATCH"].what
    assert "policy" not in found["VERSION_MISMATCH"].what
    assert "audit could not read the feed lock_outs for 300 seconds" in found["FEED_STALE"].what
    # Between processes of one machine there are no certificates.
    assert status(good).pop(services.CERTIFICATES) == "skipped"
    assert {status(good)[name] for name in services.NAMES[:-1]} == {"ok"}
    assert told(away) == ["SERVICE_UNREACHABLE"]
    assert status(away)[services.FEEDS] == "skipped"


async def test_a_witness_that_does_not_sign() -> None:
    """Of each for how long, once no process has its signature; without any there is no check."""
    moment = now()

    def since(name: str, minutes: float) -> str:
        at = moment.timestamp() - minutes * 60 if minutes else 0
        return f'evergreen_audit_witness_away_timestamp_seconds{{witness="{name}"}} {at}\n'

    one, two = since("a", 0) + since("b", 20), since("a", 30) + since("b", 16)
    with operations(one) as first, operations(two) as second, operations("") as without:
        checks = await services.checks({"audit": first, "audit-2": second}, "2.0", lambda: moment)
        good = await services.checks(
            {"audit": second}, "2.0", lambda: moment - datetime.timedelta(minutes=16)
        )
        none = await services.checks({"audit": without}, "2.0", lambda: moment)
    (found,) = [one for one in findings(checks) if one.code == "WITNESS_AWAY"]
    assert found.what == "the witness b has not signed the audit log for 20 minutes"
    assert found.severity is Severity.WARNING
    assert status(good)[services.WITNESSES] == "ok"
    assert services.WITNESSES not in status(none)


async def test_fips_mode_is_everywhere_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one module; who does not want it hears nothing of it."""

    def uses(digest: str) -> str:
        return f'evergreen_fips_info{{name="M",version="3.5",sha256="{digest}"}} 1\n'

    with operations(uses("aa")) as one, operations(uses("bb")) as two, operations("") as without:
        forgotten = await services.checks({"policy": one, "audit": one})
        mixed = await services.checks({"policy": one, "audit": two, "telemetry": without})
        off = await services.checks({"telemetry": without})
        monkeypatch.setattr(mode, "_required", True)
        alike = await services.checks({"policy": one, "audit": one})
        wanted = await services.checks({"telemetry": without})
    (missed,) = (check for check in forgotten if check.name == services.FIPS)
    assert codes(missed.findings) == ["COMMAND_NOT_FIPS"]
    (seen,) = (check.seen for check in alike if check.name == services.FIPS)
    assert seen == "M 3.5, SHA-256 aa"
    found = {finding.code: finding.what for finding in findings(mixed)}
    assert found["FIPS_OFF"] == "FIPS mode is off in telemetry."
    assert "2 modules" in found["FIPS_MODULES_DIFFER"]
    assert services.FIPS not in status(off)
    assert services.SUITES not in status(off)
    assert "FIPS_OFF" in told(wanted)


async def test_all_services_make_new_values_alike() -> None:
    """One that was forgotten would seal in the old way for ever."""
    approved = 'evergreen_suites_info{suites="approved"} 1\n'
    with operations(approved) as one, operations("") as without:
        alike = await services.checks({"policy": one, "audit": one})
        mixed = await services.checks({"policy": one, "audit": without})
    assert status(alike)[services.SUITES] == "ok"
    found = {finding.code: finding.what for finding in findings(mixed)}
    assert found["SUITES_DIFFER"] == "New values are made with standard algorithms by audit."
    assert "FIPS_OFF" not in found


async def test_certificates_between_the_parts_that_end() -> None:
    """Each service's own, and those that PostgreSQL and NATS show it; the first one first."""
    moment = now()
    name = "evergreen_certificate_expiry_timestamp_seconds"

    def ends(which: str, days: float) -> str:
        return f'{name}{{certificate="{which}"}} {moment.timestamp() + days * 86400}\n'

    well, ill = ends("own", 100), ends("own", 200) + ends("nats", 5) + ends("database", -1)
    with operations(well) as one, operations(ill) as other:
        checks = await services.checks({"policy": one, "audit": other}, "2.0", lambda: moment)
        good = await services.checks({"policy": one}, "2.0", lambda: moment)
    (check,) = (check for check in checks if check.name == services.CERTIFICATES)
    assert [finding.what for finding in check.findings] == [
        "audit: a certificate (database) has ended",
        "audit: a certificate (nats) ends in 5 days",
    ]
    assert check.status == "error"
    (seen,) = (check.seen for check in good if check.name == services.CERTIFICATES)
    assert seen == "the first one ends in 100 days"
    assert set(status(await services.checks({})).values()) == {"skipped"}
