"""Stores of backups keep what they have, and show a new one whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.backup.fetch import newest, working
from cli.backup.keep import Keep
from cli.backup.stores import s3 as s3_store
from cli.backup.stores.address import is_address, open_store, split
from cli.backup.stores.store import Access, Store, Stored, StoreError, name_of, stored, unfinished
from cli.errors import CliError
from tests.support.stores import BUCKET, S3, s3

TAG, OTHER = "0123456789ab", "ba9876543210"
AT = datetime(2026, 11, 1, 2, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, bucket: S3) -> Store:
    if request.param == "directory":
        (tmp_path / "store").mkdir()
        return open_store(str(tmp_path / "store"), Access())
    bucket.clear()
    return open_store(bucket.target, Access.of_environment(bucket.environment))


def keeps_what_it_is_given(store: Store, directory: Path, archive: bytes) -> None:
    """What every store does; `tests/external` has an SFTP server go through it."""
    path, name = directory / "archive", name_of(TAG, AT)
    path.write_bytes(archive)
    assert store.all() == []
    store.put(path, name)
    assert store.all() == [Stored(name, len(archive), TAG, AT)]
    path.write_bytes(b"another")
    with pytest.raises(StoreError, match="there already"):
        store.put(path, name)
    store.get(name, directory / "back")
    assert (directory / "back").read_bytes() == archive
    assert (directory / "back").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreError):
        store.get(name_of(TAG, AT + timedelta(days=1)), directory / "none")
    assert not list(directory.glob("none*"))
    later = name_of(OTHER, AT + timedelta(hours=1))
    store.put(path, later)
    assert [one.name for one in store.all()] == [name, later]
    store.tidy(TAG)
    store.remove(name)
    assert [one.name for one in store.all()] == [later]


def test_a_store_keeps_what_it_is_given(store: Store, tmp_path: Path) -> None:
    keeps_what_it_is_given(store, tmp_path, os.urandom(100_000))


def test_a_large_archive_is_uploaded_in_pieces(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, it is no object; what it left is given up by the next backup."""
    store = open_store(bucket.target, Access.of_environment(bucket.environment))
    monkeypatch.setattr(s3_store, "_PIECE", 5 << 20)
    bucket.clear()
    keeps_what_it_is_given(store, tmp_path, os.urandom(12 << 20))
    (tmp_path / "archive").write_bytes(os.urandom(12 << 20))
    name, client = name_of(TAG, AT), bucket.client
    key = f"school/evergreen/{name}"
    client.create_multipart_upload(Bucket=BUCKET, Key=key)
    client.create_multipart_upload(Bucket=BUCKET, Key=f"school/evergreen/{name_of(OTHER, AT)}")
    store.tidy(TAG)
    (left,) = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert OTHER in left["Key"]
    assert key not in bucket.objects()


def test_what_a_directory_refuses(tmp_path: Path) -> None:
    """A mount that is missing is no empty directory to begin in."""
    store = open_store(str(tmp_path / "mount"), Access())
    with pytest.raises(StoreError, match="mounted"):
        store.all()
    assert not (tmp_path / "mount").exists()


def test_what_s3_refuses(bucket: S3, tmp_path: Path) -> None:
    access = Access.of_environment(bucket.environment)
    with pytest.raises(StoreError, match="NoSuchBucket"):
        open_store("s3://nobody/here", access).all()
    away = Access.of_environment(
        bucket.environment | {"EVERGREEN_BACKUP_S3_ENDPOINT": "http://127.0.0.1:1"}
    )
    with pytest.raises(StoreError, match="Could not connect"):
        open_store(bucket.target, away).all()
    bucket.credentials.chmod(0o644)
    try:
        with pytest.raises(CliError, match="chmod 600"):
            Access.of_environment(bucket.environment)
    finally:
        bucket.credentials.chmod(0o600)


def test_a_directory_of_secrets_names_the_files(tmp_path: Path) -> None:
    for name in ("s3-credentials", "s3-ca.crt", "sftp-key", "sftp-known-hosts"):
        (tmp_path / name).touch(0o600)
    access = Access.of_environment({"EVERGREEN_BACKUP_SECRETS": str(tmp_path)})
    assert access.s3_credentials == tmp_path / "s3-credentials"
    assert access.s3_ca == tmp_path / "s3-ca.crt"
    assert access.sftp_key == tmp_path / "sftp-key"
    assert access.sftp_known_hosts == tmp_path / "sftp-known-hosts"
    with pytest.raises(CliError, match="not there"):
        Access.of_environment({"EVERGREEN_BACKUP_SFTP_KEY_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    "target",
    [
        "",
        "backups",
        "ftp://host/path",
        "sftp:///path",
        "s3://",
        "sftp://u:secret@h/p",
        "sftp://-oProxyCommand=x/p",
    ],
)
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(CliError) as refused:
        open_store(target, Access())
    assert "secret" not in str(refused.value)


def test_addresses() -> None:
    name = name_of(TAG, AT)
    assert split(f"s3://bucket/a/{name}") == ("s3://bucket/a", name)
    assert split("sftp://u@host/a/") == ("sftp://u@host/a", "")
    assert is_address("s3://bucket")
    assert not is_address("/s3")
    assert open_store("sftp://u@host:22/~/a", Access()).where == "sftp://u@host:22/~/a"


def test_names_of_ours() -> None:
    """Nothing else is ever removed."""
    name = name_of(TAG, AT)
    assert name == f"evergreen-{TAG}-20261101T023000Z.backup"
    assert stored(name, 1) == Stored(name, 1, TAG, AT)
    for other in (
        "monday.backup",
        f"{name}.part",
        f"copy-of-{name}",
        "evergreen-20261101-023000.backup",
        f"evergreen-{TAG}-20261301T023000Z.backup",
    ):
        assert stored(other, 1) is None
    assert unfinished(f".{name}.part", TAG)
    assert not unfinished(f".{name}.part", OTHER)
    assert not unfinished(name, TAG)


def of_days(*days: int) -> list[Stored]:
    found = [stored(name_of(TAG, AT - timedelta(days=day)), 1) for day in days]
    return [one for one in found if one]


def test_what_is_kept() -> None:
    backups = of_days(*range(60))
    gone = Keep.read("14").superfluous(backups)
    assert [one.name for one in gone] == [one.name for one in reversed(of_days(*range(14, 60)))]
    assert Keep.read("14").superfluous(of_days(1, 2)) == []
    kept = {one.at for one in backups} - {
        one.at for one in Keep.read("daily=3,weekly=3,monthly=2").superfluous(backups)
    }
    # The first of November 2026 is a Sunday: its week, and its month, end and begin with it.
    assert sorted((AT - at).days for at in kept) == [0, 1, 2, 7, 14]
    assert Keep.read("weekly=1").superfluous(of_days(0)) == []
    for wrong in ("0", "", "all", "daily=0", "hourly=3", "daily=7;weekly=4", "-1"):
        with pytest.raises(CliError, match="EVERGREEN_BACKUP_KEEP"):
            Keep.read(wrong)


def test_a_backup_of_the_future_is_not_the_newest(tmp_path: Path) -> None:
    """Its name would hide each backup made after it; where there is no other it is taken."""
    store = open_store(str(tmp_path), Access())
    far = tmp_path / name_of(TAG, datetime.now(UTC) + timedelta(days=400))
    far.write_bytes(b"")
    assert newest(store).name == far.name
    for days in (3, 1, 2):
        (tmp_path / name_of(TAG, datetime.now(UTC) - timedelta(days=days))).write_bytes(b"")
    assert datetime.now(UTC) - newest(store).at < timedelta(days=1, minutes=5)


def test_what_a_killed_command_left_is_removed(tmp_path: Path) -> None:
    """Its directory may hold a decrypted backup; one in use stays, as does one made just now."""
    abandoned = tmp_path / "evergreen-backup-abandoned"
    for directory in (abandoned, tmp_path / "evergreen-backup-new"):
        directory.mkdir()
    (abandoned / "master_key").write_bytes(b"")
    os.utime(abandoned, (0, 0))
    with working(tmp_path) as first:
        assert not abandoned.exists()
        os.utime(first, (0, 0))
        with working(tmp_path) as second:
            assert first.is_dir()
            assert second != first
    assert [path.name for path in tmp_path.iterdir()] == ["evergreen-backup-new"]
