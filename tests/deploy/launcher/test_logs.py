"""What a person sees of the processes' logs."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import pytest

from deploy.launcher.console import Console
from deploy.launcher.events import (
    LogEvent,
    parse_envoy,
    parse_nats,
    parse_postgres,
    parse_service,
)
from deploy.launcher.logfile import Bounds, LogFile
from deploy.launcher.logs import Flood, Logs
from deploy.launcher.render import as_journal, as_json, as_text

AT = datetime.datetime(2026, 11, 24, 6, 17, 8, 123456, tzinfo=datetime.UTC)


def test_a_service_s_line_becomes_a_readable_one() -> None:
    """Time, process, level, message, then the context as key=value; the own name is left out."""
    line = json.dumps(
        {
            "event": "policy published",
            "level": "info",
            "time": AT.isoformat(),
            "service": "policy",
            "version": 7,
            "name": "Year 9 laptops",
            "request_id": "r-1",
        }
    )
    event = parse_service("policy", line)
    assert event is not None
    time = AT.astimezone().strftime("%H:%M:%S.123")
    assert as_text(event, colour=False) == (
        f"{time} policy      info     policy published"
        ' version=7 name="Year 9 laptops" request_id=r-1'
    )


def test_text_from_outside_cannot_take_over_the_terminal() -> None:
    """Escape sequences, line breaks and text direction marks are shown, not obeyed."""
    evil = "a\x1b[2J\r\nfake line\u202e\x9b31m"
    event = LogEvent(AT, "identity", "info", evil, {"serial\x1b": evil})
    for colour in (False, True):
        text = as_text(event, colour=colour)
        assert "\n" not in text and "\r" not in text and "\u202e" not in text
        assert "\x1b[2J" not in text and "\x9b" not in text
    assert "\\x1b[2J" in as_text(event, colour=False)


def test_colour_only_where_it_was_asked_for() -> None:
    """Without colour there is no escape sequence at all."""
    event = LogEvent(AT, "audit", "error", "oh", {"a": 1})
    assert "\x1b[" in as_text(event, colour=True)
    assert "\x1b" not in as_text(event, colour=False)


def test_a_traceback_is_one_line() -> None:
    """The line that names the error is shown; its way there is in the file."""
    event = LogEvent(
        AT, "audit", "error", "failed", {"exception": "Traceback …\n  x\nValueError: y"}
    )
    assert as_text(event, colour=False).endswith('failed exception="ValueError: y"')
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1', "ImportError: z"]
    levels = [event.level for line in lines if (event := parse_service("policy", line))]
    assert levels == ["debug", "debug", "warning"]


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("42P01 ERROR:  relation does not exist", "error", "relation does not exist"),
        ("00000 LOG:  database system is ready", "info", "database system is ready"),
        ("23505 ERROR:  duplicate key value", "info", "duplicate key value"),
        ("08006 FATAL:  connection to client lost", "info", "connection to client lost"),
        ("57P03 FATAL:  the database system is starting up", "info", "the database system is"),
        ("53200 FATAL:  out of memory", "error", "out of memory"),
        ("XX001 PANIC:  could not write", "critical", "could not write"),
        ("01000 WARNING:  there is no transaction", "warning", "there is no transaction"),
    ],
)
def test_postgres(line: str, level: str, message: str) -> None:
    """Levels by severity; what a service expects and handles does not alarm anybody."""
    event = parse_postgres("postgres", f"2026-11-24 06:17:08.123 UTC [99] {line}")
    assert event is not None
    assert (event.level, event.time) == (level, AT.replace(microsecond=123000))
    assert event.message.startswith(message)


def test_nats_and_envoy() -> None:
    """Both servers' own formats."""
    nats = parse_nats("nats", "[7] 2026/11/24 06:17:08.123456 [ERR] JetStream out of space")
    assert nats == LogEvent(AT, "nats", "error", "JetStream out of space")
    envoy = parse_envoy("gateway", "2026-11-24T06:17:08.123456+00:00 critical main no listener")
    assert envoy == LogEvent(AT, "gateway", "critical", "no listener", {"logger": "main"})


@pytest.mark.parametrize(
    ("request_", "level"),
    [
        ({"path": "/api/devices", "status": 503}, "warning"),
        ({"path": "/x.S/M", "status": 200, "grpc_status": "INTERNAL"}, "warning"),
        ({"path": "/api/v1/devices/policy", "status": 200}, "info"),
        ({"path": "/readyz", "status": 503}, "info"),
    ],
)
def test_failed_requests(request_: dict[str, object], level: str) -> None:
    """The gateway's access log: what failed on this side is shown."""
    line = json.dumps({"method": "GET", "time": AT.isoformat(), "upstream": "policy", **request_})
    event = parse_envoy("gateway", line)
    assert event is not None
    assert event.level == level
    assert event.message == f"GET {request_['path']} answered {request_['status']}"
    assert event.context["upstream"] == "policy"


def shown(tmp_path: Path, lines: list[bytes], fmt: str = "console") -> str:
    screen = io.StringIO()
    console = Console(screen, fmt)  # type: ignore[arg-type]
    log = Logs(tmp_path, console).process("policy", parse_service, "info")
    for line in lines:
        log.feed(line + b"\n")
    console.close()
    return screen.getvalue()


def test_a_flood_is_held_back_at_the_terminal_only(tmp_path: Path) -> None:
    """A person sees the first lines; the file, and a program that reads JSON, get all."""
    lines = [json.dumps({"event": f"n{i}", "level": "error"}).encode() for i in range(500)]
    screen = shown(tmp_path, lines)
    assert 40 < screen.count("error") < 120
    assert (tmp_path / "policy.log").read_bytes().count(b"\n") == 500
    everything = shown(tmp_path, lines, "json").splitlines()
    assert len(everything) == 500
    assert json.loads(everything[499])["event"] == "n499"
    assert json.loads(everything[499])["process"] == "policy"


def test_a_flood_ends_with_the_number_of_lines_held_back() -> None:
    """Lines come back when there is room for a few of them."""
    time = [0.0]
    flood = Flood(lambda: time[0])
    assert [flood.admit()[0] for _ in range(100)].count(True) == 60
    time[0] += 0.5
    assert flood.admit() == (False, 0)
    time[0] += 1.0
    assert flood.admit() == (True, 41)
    assert flood.admit() == (True, 0)


def test_debug_is_for_the_file(tmp_path: Path) -> None:
    """Below the level nothing is shown; everything is kept."""
    screen = shown(tmp_path, [b'{"event": "detail", "level": "debug"}'])
    assert screen == ""
    assert b"detail" in (tmp_path / "policy.log").read_bytes()


def test_json_lines_hold_the_context() -> None:
    """One object a line, with whatever the service said."""
    event = LogEvent(AT, "policy", "info", "published", {"version": 7})
    assert json.loads(as_json(event)) == {
        "time": AT.isoformat(),
        "process": "policy",
        "level": "info",
        "event": "published",
        "version": 7,
    }


def test_log_files_rotate(tmp_path: Path) -> None:
    """A file never grows past its limit, and only a few old ones are kept."""
    log = LogFile(tmp_path / "nats.log", largest=100, kept=2)
    for number in range(50):
        log.write(b"%039d\n" % number)
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["nats.log", "nats.log.1", "nats.log.2"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert b"%039d\n" % 49 in (tmp_path / "nats.log").read_bytes()


def test_a_reader_that_is_gone_does_not_matter() -> None:
    """`make run | head`: the launcher goes on without a terminal."""

    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    console = Console(Gone())
    for number in range(100):
        console.say(str(number))
    console.close(timeout=2)


def test_the_journal_reads_the_level(tmp_path: Path) -> None:
    """By the prefix of syslog; the journal has the time itself. One event is one line."""
    event = LogEvent(AT, "policy", "warning", "poll\nrefused", {"device": "a b"})
    assert as_journal(event) == '<4>policy: poll\\nrefused device="a b"'
    output = io.StringIO()
    console = Console(output, "journal")
    logs = Logs(tmp_path, console)
    logs.event("error", "it failed", exit=1)
    console.say("\nStopping ...\n")
    console.close()
    assert output.getvalue() == "<3>evergreen: it failed exit=1\n<6>evergreen: Stopping ...\n"


def test_what_is_kept_of_logs_is_bounded(tmp_path: Path) -> None:
    """In size and number, of each process."""
    logs = Logs(tmp_path, Console(io.StringIO()), bounds=Bounds(1000, 2))
    log = logs.process("policy", parse_service, "error")
    for number in range(100):
        log.feed(f"line {number} {'x' * 60}\n".encode())
    files = sorted(tmp_path.glob("policy.log*"))
    assert [path.name for path in files] == ["policy.log", "policy.log.1", "policy.log.2"]
    assert all(path.stat().st_size <= 1000 for path in files)
    assert "line 99" in files[0].read_text()


def test_a_start_tells_the_same_failure_once(tmp_path: Path) -> None:
    """A service that cannot start says so at each of its tries; afterwards everything is told."""
    screen = io.StringIO()
    console = Console(screen)
    logs = Logs(tmp_path, console)
    log = logs.process("policy", parse_service, "info")
    logs.calm = True
    for _ in range(3):
        log.feed(b"ValueError: the key is too short\n")
        logs.event("info", "policy ended (exit status 1); starting it again in 0.2 s")
    logs.calm = False
    log.feed(b"ValueError: the key is too short\n")
    logs.event("warning", "policy ended (exit status 1); starting it again in 0.2 s")
    console.close()
    assert screen.getvalue().count("too short") == 2
    assert screen.getvalue().count("starting it again") == 1
    assert (tmp_path / "policy.log").read_bytes().count(b"too short") == 4
