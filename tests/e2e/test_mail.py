"""Mail of a whole installation, with a real mail server: the documented commands, the pages, and a
service that is killed while it sends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from services.identity.mail.smtp import SECONDS
from tests.e2e.pages import Pages
from tests.e2e.tokens import superuser
from tests.e2e.world import ok
from tests.support.documented import Commands, script
from tests.support.mail import PASSWORD as SMTP_PASSWORD
from tests.support.mail import SENDER, USER, Mailbox, body, mail_server, token
from tests.support.stack import PATIENCE, Stack, running, until

NEW = "a quite different long password"


@contextmanager
def in_a_thread(directory: Path) -> Iterator[Mailbox]:
    """A mail server with a loop of its own, for tests that wait without one."""
    loop = asyncio.new_event_loop()
    made: Future[Mailbox] = Future()
    end = asyncio.Event()

    async def serve() -> None:
        async with mail_server("starttls", directory=directory, login=True) as box:
            made.set_result(box)
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield made.result(PATIENCE)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(PATIENCE)
        loop.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: sockets are in it."""
    found = Path(tempfile.mkdtemp(prefix="evergreen-mail-"))
    yield found
    shutil.rmtree(found)


@pytest.fixture(scope="module")
def box(place: Path) -> Iterator[Mailbox]:
    with in_a_thread(place) as found:
        yield found


@pytest.fixture(scope="module")
def mailing(place: Path, box: Mailbox) -> Iterator[Stack]:
    """An installation that sends mail."""
    (place / "smtp-password").write_text(SMTP_PASSWORD + "\n")
    with running(
        place / "home",
        EVERGREEN_SMTP_URL=f"smtp+starttls://{USER}@localhost:{box.port}",
        EVERGREEN_SMTP_FROM=SENDER,
        EVERGREEN_SMTP_PASSWORD_FILE=str(place / "smtp-password"),
        EVERGREEN_SMTP_CA_FILE=str(place / "ca.pem"),
    ) as stack:
        stack.until_ready()
        yield stack


def arrived(box: Mailbox, address: str, count: int = 1) -> None:
    until(lambda: len(box.to(address)) >= count, PATIENCE, f"no mail came to {address}")


def test_the_example(mailing: Stack, box: Mailbox, tmp_path: Path) -> None:
    """docs/mail.md: a try, the state, an organisation's language."""
    with Commands("docs/mail.md", "make-run") as commands:
        blocks = commands.take("Set it up")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script(blocks, tmp_path)],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "EVERGREEN_HOME": str(mailing.home),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "took the mail to someone@school.example" in done.stdout
    assert f"server   smtp+starttls://localhost:{box.port}" in done.stdout
    assert "Default: language de, time zone Europe/Berlin" in done.stdout
    assert box.subjects("someone@school.example") == ["Test mail"]


def test_a_forgotten_password_by_the_pages(mailing: Stack, box: Mailbox) -> None:
    """Without JavaScript: the page says the same for a stranger; the link of the mail sets it."""
    email = "anna@school.example"
    with mailing.first_owner() as root:
        made = ok(root.post("/api/users", json={"email": email, "role": "Auditor"}))
    assert made["invitationMail"] == "queued"
    arrived(box, email)
    with Pages(mailing) as pages:
        accepted = pages.send(
            "/auth/accept", "accept", token=token(box.to(email)[0]), password=mailing.password
        )
        assert accepted.status_code == 303
    with Pages(mailing, "de") as pages:
        said = {}
        for address in (email, "nobody@school.example"):
            answer = pages.send("/auth/forgot", "forgot", email=address)
            assert answer.status_code == 200
            said[address] = answer.text.replace(address, "…")
        assert len({_without_token(text) for text in said.values()}) == 1
        assert "eine Mail dorthin unterwegs" in said[email]
        arrived(box, email, 2)
        mail = box.to(email)[1]
        assert mail["Subject"] == "[Evergreen] Neues Passwort wählen"
        assert f"{mailing.url}/auth/forgot#token=" in body(mail)
        link = body(mail).split("https://", 1)[1].split()[0]
        answer = pages.send("/auth/forgot", "reset", token=f"https://{link}", password=NEW)
        assert answer.status_code == 303
    mailing.login(email, NEW)
    assert box.to("nobody@school.example") == []
    with mailing.client() as anyone:
        said = ok(anyone.post("/auth/forgot-password", json={"email": "nobody@school.example"}))
        assert said == {"mailIsOn": True}


def _without_token(page: str) -> str:
    return "\n".join(line for line in page.splitlines() if 'name="form"' not in line)


def test_a_kill_loses_no_mail(mailing: Stack, box: Mailbox) -> None:
    """Identity is killed while the server has the mail and has not answered: once its hold on the
    mail has ended it comes again, with the same Message-ID, and all others come."""
    hold = asyncio.Event()
    email = "killed@school.example"
    with mailing.first_owner() as root:

        def waiting() -> int:
            return int(ok(root.get("/api/mail")).get("waiting", 0))

        until(lambda: not waiting(), PATIENCE, "earlier mails wait")
        box.hold = hold
        box.tasted.clear()
        ok(root.post("/api/users", json={"email": email, "role": "Auditor"}))
    until(box.tasted.is_set, PATIENCE, "nothing was sent")
    mailing.signal("identity", signal.SIGKILL)
    box.hold = None
    mailing.until_ready()
    # Nobody else takes the mail while the process that was killed could still send it: that is
    # minutes, which pass at once here.
    (held,) = superuser(
        mailing,
        "SELECT taken_until - now() AS for_ FROM identity.mail WHERE address = $1",
        email,
    )
    assert held["for_"] > timedelta(seconds=SECONDS)
    superuser(mailing, "UPDATE identity.mail SET taken_until = now() WHERE address = $1", email)
    arrived(box, email, 2)
    sent = box.to(email)
    assert len(sent) == 2
    assert sent[0]["Message-ID"] == sent[1]["Message-ID"]
    assert sent[0]["Date"] == sent[1]["Date"]
    assert token(sent[0]) == token(sent[1])
    with mailing.first_owner() as root:
        assert ok(root.get("/api/mail")).get("waiting", 0) == 0


@pytest.mark.timeout(420)
def test_an_alert_is_told_once_though_audit_is_killed(mailing: Stack, box: Mailbox) -> None:
    """One entry and one mail, whenever the process dies: while it records, looks or hands over."""
    rules = {
        "rules": [{"kind": "logins-refused", "thresholds": {"count": 2}}],
        "recipients": {"emails": ["alerts@school.example"]},
    }
    with mailing.first_owner() as root, mailing.client() as anyone:
        ok(root.patch("/api/alert-rules", json=rules))
        for _ in range(4):
            wrong = {"email": mailing.email, "password": "guessed, and wrong"}
            assert anyone.post("/auth/login", json=wrong).status_code == 401
        mailing.signal("audit", signal.SIGKILL)
        mailing.until_ready()

        def open_alerts() -> list[str]:
            found = ok(root.get("/api/alerts", params={"open": True})).get("alerts", [])
            return [alert["subject"] for alert in found if alert["kind"] == "logins-refused"]

        until(open_alerts, 2 * PATIENCE, "no alert is raised")
        mailing.signal("audit", signal.SIGKILL)
        mailing.until_ready()
        arrived(box, "alerts@school.example")

        def entries(action: str) -> list[str]:
            found = ok(root.get("/api/audit", params={"action": action})).get("entries", [])
            return [entry["resource"] for entry in found]

        until(lambda: entries("audit.alert_raised"), PATIENCE, "the log does not say it")
        ok(
            root.patch(
                "/api/alert-rules", json={"rules": [{"kind": "logins-refused", "enabled": False}]}
            )
        )
        until(lambda: entries("audit.alert_resolved"), 3 * PATIENCE, "it is not resolved")
        arrived(box, "alerts@school.example", 2)
        assert entries("audit.alert_raised") == entries("audit.alert_resolved")
        assert open_alerts() == []
    subjects = box.subjects("alerts@school.example")
    assert [subject.partition(":")[0] for subject in subjects] == ["Alert", "Resolved"]


def test_no_secret_is_left_anywhere(mailing: Stack, box: Mailbox) -> None:
    """Neither the mail server's password nor a link stands in a log or in the audit log."""
    with mailing.first_owner() as root:
        entries = root.get("/api/audit/export").text
        status = root.get("/api/mail").text
    output = (mailing.home.parent / f"{mailing.home.name}.out").read_text(errors="replace")
    logs = [path.read_text(errors="replace") for path in mailing.home.rglob("*.log")]
    links = {token(mail) for mail in box.mails if "#token=" in body(mail)}
    assert len(links) >= 3
    for text in (entries, status, output, *logs):
        for secret in (SMTP_PASSWORD, *links):
            assert secret not in text
    assert "identity.mail_tested" in entries
