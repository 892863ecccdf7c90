"""What a person may choose for `make run`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from deploy.launcher import options
from deploy.launcher.errors import LauncherError


def test_addresses_have_defaults_and_no_slash_at_the_end() -> None:
    """The public address is this machine's; there is no console until one is named."""
    found = options.read({"EVERGREEN_PORT": "9000"})
    assert (found.public_url, found.console_url) == ("https://localhost:9000", "")
    found = options.read(
        {
            "EVERGREEN_PUBLIC_URL": "https://evergreen.school.example/",
            "CONSOLE_URL": " http://127.0.0.1:3000/ ",
        }
    )
    assert found.public_url == "https://evergreen.school.example"
    assert found.console_url == "http://127.0.0.1:3000"
    found = options.read({"EVERGREEN_CONSOLE_URL": "http://a", "CONSOLE_URL": "http://b"})
    assert found.console_url == "http://a"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("EVERGREEN_PUBLIC_URL", "http://evergreen.school.example"),
        ("EVERGREEN_PUBLIC_URL", "evergreen.school.example"),
        ("EVERGREEN_PUBLIC_URL", "https://evergreen.school.example/x"),
        ("EVERGREEN_PUBLIC_URL", "https://evergreen.school.example:x"),
        ("EVERGREEN_CONSOLE_URL", "127.0.0.1:3000"),
        ("EVERGREEN_CONSOLE_URL", "http://127.0.0.1:3000/dashboard"),
        ("EVERGREEN_CONSOLE_URL", "ftp://127.0.0.1"),
    ],
)
def test_an_address_that_is_none_stops_the_start(name: str, url: str) -> None:
    """With its name, as the other variables do."""
    with pytest.raises(LauncherError, match=name):
        options.read({name: url})


def test_logs_have_a_place_and_bounds() -> None:
    """The home's own, unless they are to be elsewhere."""
    found = options.read({"EVERGREEN_HOME": "/srv/evergreen"})
    assert found.logs == Path("/srv/evergreen/logs")
    assert (found.log_bounds.largest, found.log_bounds.kept) == (16 << 20, 4)
    found = options.read(
        {
            "EVERGREEN_LOG_DIR": "/var/log/evergreen",
            "EVERGREEN_LOG_FILE_MIB": "1",
            "EVERGREEN_LOG_FILES": "2",
        }
    )
    assert found.logs == Path("/var/log/evergreen")
    assert (found.log_bounds.largest, found.log_bounds.kept) == (1 << 20, 1)
    for name in ("EVERGREEN_LOG_FILE_MIB", "EVERGREEN_LOG_FILES"):
        with pytest.raises(LauncherError, match=name):
            options.read({name: "0"})


def test_what_the_journal_gets_is_for_it(tmp_path: Path) -> None:
    """Where systemd says that the output is its journal's, and it still is."""
    found = os.fstat(1)
    stream = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    assert options.read(stream).log_format == "journal"
    assert options.read({"JOURNAL_STREAM": "1:1"}).log_format == "console"
    assert options.read({**stream, "EVERGREEN_LOG_FORMAT": "json"}).log_format == "json"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"EVERGREEN_BACKUP_SCHEDULE": "02:30"}, "EVERGREEN_BACKUP_TARGET is not set"),
        (
            {"EVERGREEN_BACKUP_SCHEDULE": "nightly", "EVERGREEN_BACKUP_TARGET": "/b"},
            "EVERGREEN_BACKUP_SCHEDULE: 'nightly'",
        ),
        (
            {"EVERGREEN_BACKUP_REHEARSE_SCHEDULE": "1", "EVERGREEN_BACKUP_TARGET": "/b"},
            "EVERGREEN_BACKUP_REHEARSE_SCHEDULE",
        ),
    ],
)
def test_a_schedule_that_is_none_stops_the_start(settings: dict[str, str], reason: str) -> None:
    """Not the night in which the first backup was to be made."""
    with pytest.raises(LauncherError, match=re.escape(reason)):
        options.read(settings)


def test_backups_are_made_where_they_are_scheduled() -> None:
    target = {"EVERGREEN_BACKUP_TARGET": "s3://bucket"}
    assert not options.read(target).backups
    assert options.read({**target, "EVERGREEN_BACKUP_SCHEDULE": "6h"}).backups


def test_former_addresses_and_another_certificate() -> None:
    """Origins with commas between them; what is none is named."""
    found = options.read(
        {
            "EVERGREEN_FORMER_PUBLIC_URLS": "https://Old.example:443/, https://older.example:9443",
            "EVERGREEN_TLS_DIRECTORY": "~/tls",
        }
    )
    assert found.former_public_urls == ("https://old.example", "https://older.example:9443")
    assert found.tls_directory == Path.home() / "tls"
    assert options.read({}).former_public_urls == ()
    for wrong in ("old.example", "https://older.example,http://old.example"):
        with pytest.raises(LauncherError, match=r"EVERGREEN_FORMER_PUBLIC_URLS.*'\S*old\.example'"):
            options.read({"EVERGREEN_FORMER_PUBLIC_URLS": wrong})
