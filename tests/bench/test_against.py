"""`make bench BASE=…`: its statistics, its sections, and the files of a commit; without load."""

from __future__ import annotations

import math
import random
import subprocess
from pathlib import Path

import pytest

from bench import traffic
from bench.against.base import PLANS, Bench, Finding, Resting, back_and_forth
from bench.against.checkout import CheckoutError, checkout, commit_of
from bench.against.installation import Place
from bench.against.intervals import Comparison, interval, signed_rank_tail
from bench.against.sections import Section, parse
from bench.cpu import precise, read_process
from bench.report import Report


def test_the_signed_ranks_are_those_of_the_tables() -> None:
    """The two-sided 5 % points of Wilcoxon's test for 6, 12 and 20 pairs are 0, 13 and 52."""
    for pairs, critical in ((6, 0), (12, 13), (20, 52)):
        tail = signed_rank_tail(pairs)
        assert 2 * tail[critical] <= 0.05 < 2 * tail[critical + 1]
        assert tail[-1] == 1


def test_the_interval_is_of_the_means_of_any_two() -> None:
    """Of 12 pairs' 78 means the 14th from either end bound it."""
    logs = [n**2 / 1000 for n in range(12)]
    means = sorted((a + b) / 2 for n, a in enumerate(logs) for b in logs[n:])
    found = interval([math.exp(one) for one in logs])
    assert found.low == pytest.approx(math.exp(means[13]))
    assert found.high == pytest.approx(math.exp(means[64]))
    assert found.confidence == pytest.approx(0.9575, abs=1e-4)


@pytest.mark.parametrize("stranger", [0.0, 0.15])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(stranger: float) -> None:
    """Also when a stranger makes some pairs ten times as noisy."""
    chance = random.Random(5)

    def noise() -> float:
        return chance.gauss(0, 0.1 if chance.random() < stranger else 0.01)

    held = 0
    for _ in range(1000):
        found = interval([1.03 * math.exp(noise()) for _ in range(12)])
        held += found.low <= 1.03 <= found.high
    assert held >= 940


def test_few_pairs_say_how_sure_they_are() -> None:
    assert interval([1.0, 1.1, 1.2]).confidence == pytest.approx(0.75)
    assert interval([1.1]).low == interval([1.1]).high == pytest.approx(1.1)
    with pytest.raises(ValueError, match="no pair"):
        interval([])


def test_a_machine_that_drifts_does_not_change_the_ratio() -> None:
    base = [100.0 * 1.1**n for n in range(12)]
    found = Comparison(base, [1.02 * one for one in base]).interval
    assert found.low == pytest.approx(1.02)
    assert found.high == pytest.approx(1.02)


@pytest.mark.parametrize(
    ("ratios", "failed", "verdict"),
    [
        ([1.0, 1.01, 0.99] * 4, {}, "yes"),
        ([1.05, 1.06, 1.04] * 4, {}, "NO"),
        ([1.0, 1.2, 0.8] * 4, {}, "yes, but the interval is wide"),
        ([1.0, 1.01, 0.99] * 4, {"poll: 503": 1}, "NO RESULT: calls failed"),
    ],
)
def test_at_most_3_percent_dearer_means_that_the_interval_reaches_down_to_it(
    ratios: list[float], failed: dict[str, int], verdict: str
) -> None:
    finding = Finding("mix", "µs a call", Comparison([1.0] * 12, ratios), failed)
    assert finding.verdict(0.03) == verdict
    assert finding.is_good(0.03) is verdict.startswith("yes")


def test_sections_are_kinds_of_calls_with_or_without_a_rate() -> None:
    assert parse("poll, mix@200,rest") == [
        Section("poll", traffic.POLL),
        Section("mix@200", traffic.MIX, 200.0),
        Section("rest"),
    ]


@pytest.mark.parametrize("text", ["polls", "", "mix@", "mix@-1", "mix@0", "rest@5", "poll,poll"])
def test_a_section_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown section '.*give poll, state|named twice"):
        parse(text)


@pytest.mark.parametrize("per_second", [3, 80, 700, 9000])
@pytest.mark.parametrize("kind", [traffic.POLL, traffic.ENROLL, traffic.LOGIN, traffic.ATTEST])
def test_a_round_is_cut_into_turns(kind: str, per_second: float) -> None:
    """An even number, none so short that its connections are not busy, and not too many calls."""
    section = Section("x", kind)
    turns, calls = section.turns(8, per_second)
    assert turns >= 2
    assert turns % 2 == 0
    assert calls >= section.connections
    assert turns * calls <= max(4 * per_second + turns, 4 * section.connections)


def test_the_load_goes_back_and_forth() -> None:
    """What drifts within a round drifts for both sides alike."""
    assert back_and_forth(4, 0) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert back_and_forth(4, 1) == [1, 0, 0, 1, 1, 0, 0, 1]


def test_rest_is_told_by_process(tmp_path: Path) -> None:
    """CPU time and memory, the median of the rounds, and the ratio of the sums."""
    places = Place("base", tmp_path), Place("tree", tmp_path)
    bench = Bench(places, parse("rest"), PLANS["quick"], Report())
    base = Resting({"policy": 8.0, "postgres": 4.0}, {"policy": 60.0, "postgres": 180.0})
    tree = Resting({"policy": 2.0, "postgres": 4.0}, {"policy": 30.0, "postgres": 90.0})
    for _ in range(3):
        bench.add_rest(base, tree)
    costs, memory = bench.findings()
    assert (costs.section, costs.costs.ratio_of_medians) == ("rest", pytest.approx(0.5))
    assert (memory.section, memory.costs.ratio_of_medians) == ("memory", pytest.approx(0.5))
    kept = bench.report.results["sections"]["rest"]
    assert kept["base"]["cpu_ms_per_second"] == {"policy": 8.0, "postgres": 4.0}
    assert kept["tree"]["pss_mib"] == {"policy": 30.0, "postgres": 90.0}


def test_cpu_time_is_of_all_threads_in_nanoseconds(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    fields = ["S", "7", *["0"] * 9, "150", "50", "0", "0", *["0"] * 20]
    (tmp_path / "42" / "stat").write_text(f"42 (a) {' '.join(fields)}")
    (tmp_path / "42" / "cmdline").write_bytes(b"program\0")
    process = read_process(42, tmp_path)
    assert process is not None
    # What ended threads have used is in `stat` alone.
    assert precise(process, tmp_path).own == process.own
    for thread, nanoseconds in ((42, 1_900_000_001), (43, 200_000_000)):
        (tmp_path / "42" / "task" / str(thread)).mkdir(parents=True)
        (tmp_path / "42" / "task" / str(thread) / "schedstat").write_text(f"{nanoseconds} 5 6\n")
    assert precise(process, tmp_path).own == pytest.approx(max(process.own, 2.100000001))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Five commits; the installer notes that it has run."""
    directory = tmp_path / "repository"
    script = directory / "deploy" / "launcher" / "install.sh"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\nset -eu\n[ ! -e broken ]\necho x >> .installed\n")
    script.chmod(0o755)
    _git(directory, "init", "-q")
    for number in range(5):
        (directory / "number").write_text(str(number))
        _git(directory, "add", "-A")
        _git(directory, "commit", "-qm", "x")
    return directory


def _git(directory: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    subprocess.run(["git", "-C", str(directory), *who, *words], check=True)


def test_a_commits_files_are_installed_once(repository: Path, tmp_path: Path) -> None:
    commit = commit_of("HEAD~1", repository)
    for _ in range(2):
        with checkout(commit, repository, tmp_path / "cache") as directory:
            assert (directory / "number").read_text() == "3"
            assert (directory / ".installed").read_text() == "x\n"


def test_what_could_not_be_installed_is_made_anew(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (repository / "broken").touch()
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "x")
    broken = commit_of("HEAD", repository)
    for _ in range(2):
        with (
            pytest.raises(CheckoutError, match=r"install\.sh failed"),
            checkout(broken, repository, cache),
        ):
            pass
    with pytest.raises(CheckoutError, match="BASE=nonsense: git knows no such commit"):
        commit_of("nonsense", repository)


def test_old_commits_files_are_removed_but_those_in_use(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    commits = [commit_of(f"HEAD~{number}", repository) for number in range(5)]
    with checkout(commits[0], repository, cache) as used:
        for commit in commits[1:]:
            with checkout(commit, repository, cache) as last:
                pass
        assert used.exists()
        assert last.exists()
        assert len(list(cache.glob("*/number"))) <= 4
