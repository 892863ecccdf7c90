"""Tables show what clients say, and let none of it act."""

from __future__ import annotations

from cli.tables import table


def test_what_controls_the_terminal_is_shown() -> None:
    """A name or an agent is a client's to choose, and is read by an administrator."""
    rows = [("\x1b]0;owned\x07\x1b[2Jagent", "two\nlines"), ("Schüler-PC 7", "\u202egnp.exe")]
    agent = r"\x1b]0;owned\x07\x1b[2Jagent"
    assert table(("AGENT", "NAME"), rows) == [
        f"{'AGENT':{len(agent)}}  NAME",
        rf"{agent}  two\nlines",
        rf"{'Schüler-PC 7':{len(agent)}}  \u202egnp.exe",
    ]
