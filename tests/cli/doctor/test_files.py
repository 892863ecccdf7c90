"""What `evergreen doctor` finds in files: secrets, certificates, logs."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest

from cli.doctor import files, former, installation
from cli.doctor.finding import Severity
from cli.doctor.public import Public
from cli.former_names import callers, lines_of_home
from deploy import certificates
from deploy.launcher.home import master_key
from servicekit.ids import now
from tests.support.doctor import codes
from tests.support.mounted import Mounted

DAY = datetime.timedelta(days=1)


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    for path in (secret, other):
        path.touch(0o600)
    assert files.permissions([secret, other]).status == "ok"
    other.chmod(0o640)
    (found,) = files.permissions([secret, other]).findings
    assert found.code == "SECRETS_READABLE"
    assert str(other) in found.what
    assert str(secret) not in found.what
    assert f"chmod go= {other}" in found.fix
    assert files.permissions([tmp_path / "missing"]).status == "skipped"


def test_the_directories_of_a_mounted_secret_are_no_secrets(tmp_path: Path) -> None:
    """Kubelet's have a mode for all, and names with underlines; the files in them have theirs."""
    volume = Mounted(tmp_path / "secrets")
    volume.put({"master_key": b"x", "postgres_audit": b"y"})
    found = installation.given({"EVERGREEN_ROLE_SECRETS": str(volume.path)}, None).private
    assert {path.name for path in found} == {"master_key", "postgres_audit"}


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        (None, "MASTER_KEY_MISSING", "is missing"),
        ("", "MASTER_KEY_INVALID", "is empty"),
        ("short", "MASTER_KEY_INVALID", "not one"),
        ("c2hvcnQ=", "MASTER_KEY_INVALID", "32 bytes"),
    ],
)
def test_a_master_key_that_is_none(tmp_path: Path, text: str | None, code: str, what: str) -> None:
    path = tmp_path / "master_key"
    if text is not None:
        path.write_text(text)
    (found,) = files.master_key(path).findings
    assert found.code == code
    assert what in found.what
    path.write_text(master_key() + "\n")
    assert files.master_key(path).status == "ok"
    assert files.master_key(None).status == "skipped"


def test_a_local_ca_that_cannot_go_on(tmp_path: Path) -> None:
    """Without its key, with another one, near its end, and gone."""
    at = now()
    there, other = tmp_path / "ca", tmp_path / "other"
    certificates.Authority.ensure_in(there, at=at)
    certificates.Authority.ensure_in(other, at=at)
    assert files.authorities([there]).status == "ok"
    soon = at + 3400 * DAY
    (found,) = files.authority(there, lambda: soon)
    assert (found.code, found.severity) == ("CA_EXPIRES_SOON", Severity.WARNING)
    shutil.copy2(other / "ca.key", there / "ca.key")
    assert codes(files.authority(there)) == ["CA_KEY_DOES_NOT_FIT"]
    (there / "ca.key").unlink()
    assert codes(files.authority(there)) == ["CA_KEY_MISSING"]
    (there / "ca.crt").unlink()
    assert codes(files.authority(there)) == ["CA_MISSING"]


def test_who_calls_by_a_former_name(tmp_path: Path) -> None:
    """As the gateway's log tells, the older files of it too; the latest caller is the first."""
    old = Public("https://old.example", what="former.old.example")
    assert former.checks([], tmp_path) == []
    assert former.checks([old], None)[0].status == "skipped"
    (nobody,) = former.checks([old], tmp_path)
    assert (nobody.name, nobody.status) == (former.CALLERS, "ok")

    def line(hour: int, subject: str = "", client: str = "10.0.0.1") -> str:
        said = {"time": f"2026-11-29T{hour:02}:00:00Z", "former_name": "old.example",
                "path": "/x", "client": client, "agent": "a"}  # fmt: skip
        return json.dumps(said | ({"subject": subject} if subject else {}))

    (tmp_path / "gateway.log.1").write_text(f"{line(9, 'device-1')}\n{line(9, 'device-2')}\n")
    (tmp_path / "gateway.log").write_text(
        f'{line(11, "device-1", "10.0.0.9")}\n{line(10)}\n{{"former_name": broken\n'
        '{"path": "/former_name", "status": 500}\n'
    )
    found = callers(lines_of_home(tmp_path))
    assert [(c.subject, c.calls, c.client) for c in found] == [
        ("device-1", 2, "10.0.0.9"),
        ("", 1, "10.0.0.1"),
        ("device-2", 1, "10.0.0.1"),
    ]
    assert callers(["gateway-1  | " + line(9)])[0].name == "old.example"
    (finding,) = former.checks([old], tmp_path)[0].findings
    assert (finding.code, finding.severity) == ("FORMER_NAME_USED", Severity.WARNING)
    assert "2 devices and users (device-1, device-2) called by old.example" in finding.what


def test_a_given_certificate_that_cannot_be_taken(tmp_path: Path) -> None:
    assert files.given(None) == []
    (found,) = files.given(tmp_path)[0].findings
    assert found.code == "CERTIFICATE_NOT_TAKEN"
    assert "fullchain.pem" in found.what
