"""The documentation's commands for `make run`, as they are printed, in a clone of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import httpx
import pyrage
import pytest

from auditlog.export import closing_line, opening_line
from deploy.private_files import write_private
from servicekit.ids import now
from tests.docs.reader import Reader, clone, day, psql
from tests.e2e.world import PASSWORD, ok
from tests.fakes.agent import read_config
from tests.support import documented
from tests.support.authenticator import App
from tests.support.backups import World, seed, target, world
from tests.support.documented import Block, Commands
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, attached, free_port, until

__all__ = ["world"]

pytestmark = pytest.mark.servers

CERTIFICATES = "docs/certificates.md"
DAY = "A device's day, by hand"
HOST = "https://evergreen.school.example"


@contextmanager
def started(reader: Reader, commands: list[Block], home: Path | None = None) -> Iterator[Stack]:
    """An installation that commands start, and that Ctrl-C stops."""
    output = reader.directory / "output"
    told = (home or reader.directory / ".evergreen") / "bootstrap.json"
    with reader.running(commands, output) as process:

        def ready() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return told.exists() and b"curl" in output.read_bytes()

        until(ready, 2 * PATIENCE, "it does not start")
        yield attached(told)


def path() -> str:
    """Where a shell looks for programs."""
    return f"{ROOT / '.venv/bin'}:{os.environ['PATH']}:{psql()}"


def a_reader(directory: Path) -> Reader:
    """In a clone, with ports that nothing else has."""
    ports = {
        "EVERGREEN_PORT": str(free_port()),
        "EVERGREEN_EVENTS_LISTEN": f"127.0.0.1:{free_port()}",
    }
    # Keys are rotated while a test waits.
    return Reader(clone(directory), {"PATH": path(), "EVERGREEN_KEY_LEAD_SECONDS": "10", **ports})


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: PostgreSQL's socket is in it."""
    found = Path(tempfile.mkdtemp(prefix="evergreen-docs-"))
    yield found
    shutil.rmtree(found)


@pytest.fixture(scope="module")
def reader(place: Path) -> Reader:
    return a_reader(place / "evergreen")


@pytest.fixture(scope="module")
def stack(reader: Reader) -> Iterator[Stack]:
    """Started by the commands that bring a clone up to date."""
    with started(reader, Commands("docs/upgrade.md", "make-run").take("make run")) as found:
        yield found


@pytest.fixture
def root(stack: Stack) -> Iterator[httpx.Client]:
    with stack.first_owner() as client:
        yield client


def numbers(said: str) -> str:
    """What a command asks to be typed, from what it shows before."""
    return f"{re.findall(r'number to confirm is ([0-9]+)', said)[-1]}\n"


def enrolling(serial: str) -> list[Block]:
    """The README's device with a serial number of its own, up to its first reports."""
    *before, enroll, report = Commands("README.md", "make-run").take(DAY)[:4]
    return [*before, enroll.filled({"SN-1": serial}), report]


def eventually(reader: Reader, commands: list[Block], words: str) -> None:
    """Runs commands until they print what reaches the audit log a moment after the call."""
    until(lambda: words in reader.run(commands), PATIENCE, f"nobody says {words}", 1)


def test_a_devices_day(reader: Reader, stack: Stack) -> None:
    """The README, from the first login to a fleet: every call is answered as it says."""
    with Commands("README.md", "make-run") as commands:
        said = reader.run(commands.take("Start it"))
        assert "pre_shared_key" in said
        config = read_config(reader.directory / ".evergreen/agent/agent.yaml")
        assert config.pre_shared_key in said.splitlines()
        blocks = commands.take(DAY)
    *calls, fleet = blocks
    watch = calls[-2]
    said = reader.run(calls)
    assert '"inForce": true' in said
    assert re.search(r'"device_id": "[0-9a-f-]{36}"', said)
    assert "\n304\n" in said
    assert '"message": "the calculator"' in said
    assert "Verified: " in said
    eventually(reader, [*day(), watch], "enrollment.device_enrolled")
    few = fleet.filled({"--devices 500": "--devices 5", "5m": "3s"})
    assert "5 devices" in reader.run([few])
    assert "<svg" in (reader.directory / "fleet.svg").read_text()


def test_organisations(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """One is made, exported, archived, brought back and deleted."""
    with Commands("docs/organisations.md", "make-run") as commands:
        made = commands.take("Create")
        said = reader.run(made)
        assert re.search(r"^linden:\S{32,}$", said, re.M)
        assert "Linden School" in said
        (linden,) = (t for t in ok(root.get("/api/tenants"))["tenants"] if t["code"] == "linden")

        for code in ("old-code", "linden"):
            ok(root.patch(f"/api/tenants/{linden['id']}", json={"code": code}))
        reader.run(commands.take("Codes"), "y\n")
        assert not ok(root.get(f"/api/tenants/{linden['id']}")).get("oldCodes")

        exported = reader.run(commands.take("Leave: everything in one file"))
        assert "is complete" in exported
        assert "Verified" in exported

        archive = commands.take("Archive")
        number = numbers(reader.run("evergreen orgs archive linden --dry-run"))
        reader.run(archive, number)
        assert ok(root.get(f"/api/tenants/{linden['id']}"))["status"] == "archived"
        reader.run(commands.take("Restore"))
        reader.run(archive, number)
        number = numbers(reader.run("evergreen orgs delete linden --dry-run"))
        assert "deleted" in reader.run(commands.take("Delete"), number)


def test_people(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """A lost password gets a link, and the page of invitations another one."""
    user = ok(root.post("/api/users", json={"email": "lost@school.example", "role": "Admin"}))
    with Commands("docs/console.md", "make-run") as commands:
        said = reader.run([*day(), *commands.take("Pages of the product")], USER_ID=user["id"])
    link = said.splitlines()[-1]
    assert link.startswith(f"{stack.url}/auth/accept#")
    with stack.client() as client:
        secret = link.partition("#")[2].rpartition("=")[2]
        ok(
            client.post(
                "/auth/accept-invitation",
                json={"invitationToken": secret, "password": "a password for tests"},
            )
        )
    with Commands("docs/people.md", "make-run") as commands:
        (block,) = commands.take("The only Owner has lost the password")
    said = reader.run([block.filled({"owner@school.example": user["email"]})])
    assert f"{stack.url}/auth/accept#" in said


def test_api_tokens(reader: Reader, stack: Stack) -> None:
    """A program reads the inventory with one, until it is revoked."""
    with Commands("docs/api-tokens.md", "make-run") as commands:
        made, used, rotated, revoked = commands.take("A program that reads the inventory")
    said = reader.run([made])
    assert "inventory" in said
    assert "devices:read" in said
    assert reader.run([*day()[:1], used]).strip().isdigit()
    assert "rotated" not in reader.run([rotated])
    assert (reader.directory / "inventory.token").read_text().startswith("evt_")
    said = reader.run([revoked])
    assert "revoked" in said
    assert "rotated" not in said  # the overlap is not over


def test_scim(reader: Reader, stack: Stack) -> None:
    """Sources for Entra and for Okta, with tokens that open them until they are revoked."""

    def scim(token: str) -> httpx.Client:
        client = stack.client((reader.directory / token).read_text().strip())
        client.headers["content-type"] = "application/scim+json"
        return client

    with Commands("docs/scim.md", "make-run") as commands:
        made, asked, looked = commands.take("Example: Microsoft Entra")
        assert f"{stack.url}/scim/v2 (base URL)" in reader.run([made])
        assert reader.run([*day()[:1], asked]).strip() == "0"
        with scim("entra.token") as entra:
            user = entra.post("/scim/v2/Users", json={"userName": "anna@linden.example"}).json()
            assert "NO_ROLE" in reader.run([looked])
            group = {"displayName": "eg-staff", "members": [{"value": user["id"]}]}
            assert entra.post("/scim/v2/Groups", json=group).status_code == 201
        assert "NO_ROLE" not in reader.run([looked])
        reader.run(commands.take("Example: Okta"))
        rotated, revoked = commands.take("Tokens")
        assert "entra" in reader.run([rotated])
        assert "revoked" in reader.run([revoked])
        with scim("okta.token") as okta:
            until(lambda: okta.get("/scim/v2/Users").status_code == 401, PATIENCE, "it still opens")
        assert "Nobody is held." in reader.run(commands.take("Who has an account"))
        assert "Okta is deleted" in reader.run(commands.take("After a restore"))


def test_second_factors(reader: Reader, root: httpx.Client, stack: Stack) -> None:
    """A person makes recovery codes, an Owner asks for second factors, and resets one."""
    ann = {"email": "ann@school.example", "password": "a password for tests"}
    ok(root.post("/api/users", json={**ann, "role": "Auditor"}))
    (reader.directory / "ann-password").write_text(ann["password"])
    with Commands("docs/second-factor.md", "make-run") as commands:
        said = reader.run(commands.take("Set one up"))
        assert "authenticator app: none" in said
        assert len(re.findall(r"^[0-9a-z]{5}-[0-9a-z]{5}$", said, re.M)) == 10
        said = reader.run(commands.take("Ask for it"))
        assert "second factor: owners, needed from" in said
        assert said.rstrip().endswith("second factor: off\npasswords here: all")
        with stack.client() as client:
            session = ok(client.post("/auth/login", json=ann))
            client.headers["authorization"] = f"Bearer {session['token']}"
            ok(client.post("/auth/mfa/recovery-codes", json={}))
            app = App(ok(client.post("/auth/mfa/totp", json={}))["secret"])
            ok(client.post("/auth/mfa/totp/confirm", json={"code": app.code(-1)}))
        assert "password alone" in reader.run(commands.take("App and recovery codes are lost"))
        ok(root.post("/auth/login", json=ann))


def test_policies(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """A network of the console's form gets its passphrase by a call."""
    form = {
        "configuration": {"network": {"wifiNetworks": [{"ssid": "School", "security": "wpa2"}]}}
    }
    policy = ok(
        root.post("/api/policies", json={"name": "Form", "orgId": stack.tenant_id, "bundle": form})
    )
    with Commands("docs/policies.md", "make-run") as commands:
        written = commands.take("Drafts, and what devices get")
        approved = commands.take("Freezes and second persons")
        usual = commands.take("Default plans")
        rolled_out = commands.take("In batches")
        of_groups = commands.take("Groups and single devices")
        layers = commands.take("Layers")
        compared = commands.take("What changed")
        simulated = commands.take("Before a publish")
        blocks = commands.take("The console's form")
    first, then = reader.run(day()), documented.script(blocks, reader.directory)
    assert first
    named = f"POLICY={policy['id']}\n"
    reader.run(documented.script(day(), reader.directory) + named + then)
    ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
    said = reader.run(named + documented.script(compared, reader.directory))
    assert "+ network.wifi[School]:" in said
    said = reader.run(named + documented.script(simulated, reader.directory))
    assert "devices get something else" in said
    assert "nothing is different" in said
    said = reader.run([*day(), *layers])
    assert "LOCKED" in said
    assert said.rstrip().endswith("Baseline is not in force.")
    said = reader.run([*day(), *of_groups])
    assert "group staff: Staff apps v" in said
    assert said.rstrip().endswith("Group staff is deleted.")
    assert reader.run(written).rstrip().endswith("Library is deleted.")
    said = reader.run(rolled_out)
    assert re.search(r"Laptops v\d+ is RUNNING\nbatch 1 of 3 \(10 %\)", said)
    assert "is PAUSED (by an administrator: the printers first)" in said
    assert "batch 2 of 3 (50 %)" in said
    assert "is ROLLED_BACK (by an administrator: not yet)" in said
    bea = {"email": "bea@school.example", "role": "Admin", "password": PASSWORD}
    ok(root.post("/api/users", json={**bea, "tenantId": stack.tenant_id}))
    (reader.directory / "bea-password").write_text(PASSWORD)
    said = reader.run(approved)
    assert "is AWAITING_APPROVAL\nsomebody else approves it" in said
    assert "is SCHEDULED" in said
    assert "frozen: Exams, 2027-06-03 to 2027-06-14" in said
    assert "is CANCELED" in said
    assert "a second person approves: no" in said
    said = reader.run(usual)
    assert "publishes without a plan: 1 % for 24h, 10 % for 24h" in said
    assert "it would come by the default plan in batches, at the earliest:" in said
    assert said.rstrip().endswith("publishes without a plan: to all devices at once")
    # The page on sets makes one of all policies, without drafts.
    for one in ok(root.get("/api/policies"))["policies"]:
        if one["name"] == "Laptops":
            # A device may have got it before the rollout was canceled.
            ok(root.delete(f"/api/policies/{one['id']}", params={"force": "true"}))


@pytest.mark.usefixtures("stack")
def test_policy_secrets(reader: Reader) -> None:
    """A policy gets values by their names. What is stored is sealed while the product runs, and
    opened again for other tests."""
    with Commands("docs/policy-secrets.md", "make-run") as commands:
        said = reader.run([*day(), *commands.take("Named values")])
        assert "Linden: is in force with the value" in said
        assert "another passphrase" not in said.rpartition("is in force")[2]
        said = reader.run([*day(), *commands.take("A school's own values")])
        assert "District, of a tenant above: devices get the value now" in said
        assert said.rstrip().endswith("start is deleted.\nDistrict is not in force.")
        said = reader.run(commands.take("Sealed in the database"))
    assert "rows were sealed." in said
    assert "policy.documents  0 to seal" in said
    assert "rows were opened." in reader.run("evergreen policies seal --open")


def test_attestation_gates(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """A gate is enforced for the number of devices that its preview shows, and switched off."""
    with Commands("docs/attestation.md", "make-run") as commands:
        said = reader.run([*day(), *commands.take("Enforce it")])
    assert "0 of" in said
    assert said.count("ENFORCE: at least KNOWN_TPM, 24 hours") == 2
    assert said.rstrip().endswith("OFF: at least KNOWN_TPM, 24 hours to send evidence")
    gate = ok(root.get("/api/attestation-gate", params={"orgId": stack.tenant_id}))
    assert (gate["mode"], gate["maxPercent"]) == ("OFF", 10)
    for policy in ok(root.get("/api/policies"))["policies"]:
        if policy["name"] == "Quarantine":
            ok(root.delete(f"/api/policies/{policy['id']}", params={"force": "true"}))
    for group in ok(root.get("/api/device-groups"))["deviceGroups"]:
        if group["alias"] == "quarantine":
            ok(root.delete(f"/api/device-groups/{group['id']}"))


def test_policy_sets(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """What there is becomes a set; another one is applied, changed and emptied again."""
    for policy in ok(root.get("/api/policies"))["policies"]:
        if policy["name"] == "Staff apps":
            # It is for a group that the page on policies has deleted, which no set can say.
            ok(root.delete(f"/api/policies/{policy['id']}"))
    with Commands("docs/policy-sets.md", "make-run") as commands:
        said = reader.run(commands.take("Begin with what there is"))
        assert said.rstrip().endswith("Nothing to do.")
        said = reader.run([*commands.take("Files"), *commands.take("Plan and apply")])
    assert "+ policy year-7               is published" in said
    assert "~ policy year-7               bundle; is published" in said
    assert "- policy year-7" in said
    assert "year-7" not in [
        one["alias"] for one in ok(root.get("/api/device-groups"))["deviceGroups"]
    ]


def test_groups(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """Devices are expected, labelled and grouped; a token admits them into a group."""
    with Commands("docs/groups.md", "make-run") as commands:
        said = reader.run(commands.take("Before the devices arrive"))
        assert "2 added" in said
        assert said.count("waiting") == 2
        said = reader.run(commands.take("Labels"))
        assert "2 changed" in said
        assert said.count("5CD0000001") == 1
        said = reader.run(commands.take("Groups"))
        assert "1 waiting" in said
        assert "1 removed" in said
        said = reader.run(commands.take("What a token gives"))
        assert re.search(r"^default +Cart 3 .* active +cart-3 ", said, re.M)
        reader.run(commands.take("When it is over"))
    assert ok(root.get("/api/device-groups"))["deviceGroups"] == []
    for device in ok(root.get("/api/registrations", params={"status": "expected"}))[
        "registrations"
    ]:
        ok(root.delete(f"/api/devices/{device['id']}"))


def test_enrollment_tokens(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """A key is made with the agent's files, and revoked after the question."""
    with Commands("docs/enrollment.md", "make-run") as commands:
        made, ended = commands.take("A token")
        said = reader.run([made])
        config = read_config(reader.directory / "cart-4" / "agent.yaml")
        assert config.backend_url == HOST
        assert config.pre_shared_key in said.splitlines()
        assert re.search(r"^-rw------- .* agent\.yaml$", said, re.M)
        said = reader.run([ended], "y\n")
    assert re.search(r"^default +Cart 4 +0/30 .* active ", said, re.M)
    assert "Cart 4 of default is revoked" in said
    found = ok(root.get("/api/enrollment-tokens"))["enrollmentTokens"]
    assert [one["name"] for one in found if one["status"] == "revoked"][:1] == ["Cart 4"]


def test_data(reader: Reader, stack: Stack, root: httpx.Client) -> None:
    """Events are kept as long as it was said, and files are complete."""
    reader.run(enrolling("SN-7"))
    with Commands("docs/data.md", "make-run") as commands:
        reader.run([*day(), *commands.take("How long events are kept")])
        reader.run([*day(), *commands.take("Exports")])
        (person,) = commands.take("All that is held about one person")
        said = reader.run([person.filled({"anna@linden.example": stack.email})])
    kept = ok(root.get("/api/events/retention", params={"orgId": stack.tenant_id}))
    assert kept["days"] == 30
    files = {name: (reader.directory / name).read_text() for name in ("events.csv", "devices.json")}
    assert files["events.csv"].endswith("\n")
    assert json.loads(files["devices.json"])
    assert '{"end":' in (reader.directory / "audit.jsonl").read_text().splitlines()[-1]
    assert "anna.jsonl: " in said
    held = [json.loads(line) for line in (reader.directory / "anna.jsonl").read_text().splitlines()]
    assert held[-1]["end"] == {"records": sum("record" in line for line in held), "complete": True}
    kinds = {line["record"]["kind"] for line in held if "record" in line}
    assert {"account", "session", "audit entry"} <= kinds


def test_integrators(reader: Reader, stack: Stack) -> None:
    """A credential reads the events of its organisation, also of a stream made anew."""
    with Commands("docs/integrators.md", "make-run") as commands:
        made = commands.take("Get a credential")
        consumer = commands.take("Connect")
        rebuild = commands.take("For operators")
    output = reader.directory / "events.jsonl"
    with reader.running([*day(), *made, *consumer], output):

        def seen(action: str) -> bool:
            return action in output.read_text()

        until(lambda: seen("identity.event_credential_created"), PATIENCE, "no events", 0.2)
        reader.run(rebuild, "y\n")
        reader.run(day())
        until(lambda: output.read_text().count('"policy.published"') > 1, PATIENCE, "no more")


def test_audit(reader: Reader, stack: Stack) -> None:
    """The log is verified against what was kept, and one entry of it is proved."""
    with stack.first_owner() as root:
        entry = ok(root.get("/api/audit"))["entries"][0]
    with Commands("docs/audit.md", "make-run") as commands:
        assert "identity." in reader.run(commands.take("Find entries"))
        *others, one = commands.take("Prove it")
        said = reader.run([*others, one.filled({"ENTRY-ID": entry["id"]})])
        rule, hold, archive, *rest = commands.take("How long it is kept")
        kept = reader.run([rule, hold])
        # There is nothing of years ago.
        tomorrow = f"--until {now() + timedelta(days=1):%Y-%m-%d}"
        archived = reader.run([archive.filled({"--until 2020-01-01": tomorrow}), *rest])
        redact, again = commands.take("Personal data")
        gone = reader.run([redact.filled({"ENTRY-ID": entry["id"]}), again])
    assert "Nothing was changed." in said
    assert "and only grew." in said
    assert said.count("Proved: entry") == 2
    assert "7 years" in kept
    assert "Legal hold:  case 4711 (" in kept
    assert archived.count("Archived: tenant") >= 1
    assert "Nothing was deleted." in archived
    assert archived.count("Verified:") == 2
    assert archived.count("Nothing can be pruned.") == 2
    assert "is redacted." in gone
    assert "redacted again: 0." in gone


def test_forwarding(reader: Reader, stack: Stack) -> None:
    """A forwarder is made, seen, disabled and deleted; its secret is in a file of its own."""
    with Commands("docs/forwarding.md", "make-run") as commands:
        said = reader.run(commands.take("Make one"))
    assert "The forwarder SIEM is made" in said
    assert "https://siem.school.example/evergreen" in said
    assert "SIEM is deleted." in said
    secret = (reader.directory / "siem.secret").read_text()
    assert secret.startswith("whsec_")
    assert secret.strip() not in said


def test_reports(reader: Reader, stack: Stack) -> None:
    """A report is made, downloaded and verified, and a changed one is found; a schedule is made."""
    with Commands("docs/reports.md", "make-run") as commands:
        said = reader.run(commands.take("Make one"))
        assert "The report is ready" in said
        assert "is as " in said
        later = commands.take("By themselves")
        made = reader.run([later[0]])
        schedule = made.partition("schedule ")[2].split()[0]
        said = reader.run([block.filled({"SCHEDULE-ID": schedule}) for block in later[1:]])
    assert "mails go to it@school.example, head@school.example." in said
    assert "mails go to nobody." in said
    assert "The schedule is deleted." in said


def test_alerts(reader: Reader, stack: Stack) -> None:
    """What is open, who is told, and when something is an alert."""
    with Commands("docs/alerts.md", "make-run") as commands:
        said = reader.run(commands.take("Alerts"))
    assert "Mails go to: " in said
    assert "percent 25" in said
    assert "The tenant has no rules of its own." in said


def test_passwords_for_owners_only(reader: Reader, stack: Stack) -> None:
    """They are taken from all others of an organisation, and given back."""
    with Commands("docs/sign-in.md", "make-run") as commands:
        said = reader.run(commands.take("Passwords for Owners only"))
    assert "passwords here: owners-only" in said
    assert said.rstrip().endswith("passwords here: all")


def test_the_simulator(reader: Reader, stack: Stack) -> None:
    """On this machine, and as from another one."""
    with Commands("docs/simulator.md", "make-run") as commands:
        here, there = commands.take("The simulator")
    few = {"-n 500": "-n 5", "5m": "3s"}
    reader.run([here.filled(few)])
    shutil.copy(stack.ca_file, reader.directory / "ca.crt")
    there = there.filled({**few, "linden:secret": stack.pre_shared_key, HOST: stack.url})
    assert "5 devices" in reader.run([there])


def test_questions(reader: Reader, stack: Stack) -> None:
    """Each answer's commands show what the answer says."""
    lost = {"owner@school.example": "asked@school.example"}
    serial = {"SN-1": "SN-9"}
    with stack.first_owner() as root:
        ok(root.post("/api/users", json={"email": lost["owner@school.example"], "role": "Admin"}))
    with Commands("docs/faq.md", "make-run") as commands:
        (reset,) = commands.take("The only Owner has lost the password")
        assert "/auth/accept#" in reader.run([reset.filled(lost)])
        device = enrolling(serial["SN-1"])
        again, *others, changes = commands.take("Questions that administrators ask")
        said = reader.run([*device, again.filled(serial), *others])
    assert "SN-9 may enroll until" in said
    assert '"receivedAt": "20' in said
    assert '"inForce": false' in said
    assert '"serialNumber": "SN-9"' in said
    eventually(reader, [*day(), changes], "policy.withdrawn")


def test_monitoring(reader: Reader, stack: Stack) -> None:
    """A service and the gateway tell their metrics."""
    with Commands("docs/monitoring.md", "make-run") as commands:
        service, gateway = commands.take("Metrics")
    assert "evergreen_ready 1" in reader.run([service])
    assert "envoy_http_downstream_rq_total" in reader.run([gateway])


@pytest.mark.usefixtures("stack")
def test_policy_keys(reader: Reader) -> None:
    """Keys are shown, a new one is made for new devices, and the log vouches for it."""
    with Commands("docs/policy-keys.md", "make-run") as commands:
        reader.run(commands.take("See them"))
        assert "BEGIN PUBLIC KEY" in reader.run("cat policy.pem")
        shown = reader.run(commands.take("Rotate"))
        assert "retiring" in shown and "active" in shown
        said = reader.run(commands.take("The log of keys"))
        assert "VERIFIED  2 entries" in said and " no " not in said


def test_keys(reader: Reader, stack: Stack) -> None:
    """A key is rotated; ended for good, it takes its sessions with it."""
    session = stack.login()["token"]
    *rotation, end = Commands(CERTIFICATES, "make-run").take("Keys that sign")
    reader.run(rotation)

    def old_key_is(state: str) -> bool:
        lines = reader.run("evergreen keys list").splitlines()
        return any(line.startswith("users") and f" {state} " in line for line in lines)

    until(lambda: old_key_is("retiring"), PATIENCE, "the new key does not sign", 0.5)
    assert "UPDATE 1" in reader.run([end])
    # A gateway that starts before would fetch the old key once more.
    until(lambda: old_key_is("retired"), PATIENCE, "the old key has not ended", 0.5)
    # It remembers what it has verified; the launcher starts it again.
    launcher = int((stack.home / "launcher.lock").read_text())
    (gateway,) = Stack.children(launcher, "envoy")
    os.kill(gateway, signal.SIGTERM)
    with stack.client(session) as client:

        def refused() -> bool:
            with suppress(httpx.TransportError):
                return client.get("/api/devices").status_code == 401
            return False

        until(refused, PATIENCE, "what the old key signed still counts", 0.2)
    with stack.first_owner() as client:
        ok(client.get("/api/devices"))


def test_the_doctor(reader: Reader, stack: Stack) -> None:
    """It finds nothing, by the home or by the public address."""
    with Commands("docs/troubleshooting.md", "make-run") as commands:
        (block,) = commands.take("Doctor")
        sql = commands.take("SQL")
    with Commands("docs/runbooks.md", "make-run") as commands:
        (statement,) = commands.take("EvergreenDatabasePoolUsedUp")
    assert "wait_event_type" in reader.run(sql, f"{statement.text}\\q\n")
    # As the certificate of a public CA.
    trusted = dict.fromkeys(("SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"), stack.ca_file)
    reader.run([block.filled({HOST: stack.url})], **trusted)


def test_another_machine(reader: Reader, stack: Stack, place: Path) -> None:
    """A backup is rehearsed there, and restored where nothing was; its CA is replaced."""
    kept = place / "kept"
    kept.mkdir()
    identity = pyrage.x25519.Identity.generate()
    for name, text in {
        "passphrase": "correct horse battery\n",
        "recipients": f"{identity.to_public()}\n",
        "checkpoint": reader.run("evergreen audit checkpoint"),
    }.items():
        write_private(kept / name, text)
    paths = {"/etc/evergreen": str(kept), "/backups": str(kept)}
    with Commands("docs/backup.md", "make-run") as commands:
        commands.take("To any moment: an external PostgreSQL")
        make, elsewhere = commands.take("Backup")
        assert "--secrets" in elsewhere.text
        shutil.copy(kept / "passphrase", kept / "backup-passphrase")
        reader.run([make.filled(paths)])
        (scheduled,) = commands.take("Backups on a schedule")
        assert "Last good backup" in reader.run([scheduled.filled(paths)])

        other = a_reader(place / "other")
        for name in ("monday.backup", "backup-passphrase"):
            shutil.copy(kept / name, other.directory / name)
        shutil.copy(kept / "checkpoint", other.directory / "kept-checkpoint.txt")
        write_private(other.directory / "key.txt", f"{identity}\n")
        port, home = str(free_port()), place / "rehearsal"
        rehearse, start, check = commands.take("Rehearse it")
        assert "devices" in other.run([rehearse.filled({"/backups": str(kept)})])
        start = start.filled({"/tmp/rehearsal": str(home), "9443": port})
        with started(other, [start], home):
            told = other.run([check.filled({"/tmp/rehearsal": str(home)})], EVERGREEN_PORT=port)
            assert "Verified: " in told
        with started(other, commands.take("Restore")) as restored, restored.first_owner() as root:
            until(
                lambda: "audit.restored" in str(ok(root.get("/api/audit"))),
                PATIENCE,
                "the log does not tell of the restore",
            )

    before = Path(restored.ca_file).read_text()
    with Commands(CERTIFICATES, "make-run") as commands:
        commands.take("Keys that sign")
        other.run(commands.take("Replace a CA"))
    with started(other, Commands("docs/upgrade.md", "make-run").take("make run")) as again:
        assert Path(again.ca_file).read_text() != before
        again.login()


async def test_backup_of_a_database_of_ones_own(world: World, place: Path) -> None:
    """By its address and a directory with the keys; and after a recovery to any moment."""
    reader = Reader(place / "server", {"PATH": path()})
    reader.directory.mkdir()
    await seed(world.first)
    shutil.copytree(world.servers.home.secrets, reader.directory / "keys")
    identity = pyrage.x25519.Identity.generate()
    for name, text in {
        "values.yaml": "profile: production\n",
        "keys.txt": f"{identity.to_public()}\n",
        "key.txt": f"{identity}\n",
        "newest-export.jsonl": opening_line(now(), complete=True) + closing_line(0),
    }.items():
        (reader.directory / name).write_text(text)
    commands = Commands("docs/backup.md", "make-run")
    create = commands.take("Backup")[1]
    create = create.filled(
        {"postgresql://evergreen_migrator@db/evergreen": target(world.first).dsn}
    )
    recovered = commands.take("To any moment: an external PostgreSQL")
    assert "Restored as of" in reader.run([create, *recovered])
    assert list(reader.directory.glob("evergreen-*.backup"))
