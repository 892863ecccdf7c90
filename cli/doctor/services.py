"""The six services, as their operations ports tell: ready, of one release, feeds, certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cli.doctor.finding import Check, Finding, judged, skipped, warning
from servicekit import build
from servicekit.ids import now
from servicekit.security import mode

READY: Final = "services.ready"
VERSION: Final = "services.version"
FEEDS: Final = "services.feeds"
BACKLOG: Final = "services.backlog"
FORWARDERS: Final = "services.forwarders"
MAIL: Final = "services.mail"
WITNESSES: Final = "services.witnesses"
"""Only where witnesses are asked."""
CERTIFICATES: Final = "services.certificates"
FIPS: Final = "services.fips"
"""Only where somebody wants FIPS mode."""
SUITES: Final = "services.suites"
"""Only where somebody wants approved algorithms."""
NAMES: Final = (READY, VERSION, FEEDS, BACKLOG, FORWARDERS, MAIL, CERTIFICATES)

_TIMEOUT: Final = 5.0
_STALE_SECONDS: Final = 60.0
_BACKLOG_SECONDS: Final = 120.0
"""As in the alert EvergreenEventsWait."""
_FORWARDER_SECONDS: Final = 900.0
"""As in the alert EvergreenForwarderFailing."""
_WITNESS_SECONDS: Final = 900.0
_MAIL_SECONDS: Final = 900.0
"""As in the alert EvergreenMailWaits."""
_SOON_DAYS: Final = 14
"""As in the alert EvergreenCertificateExpires."""
_UNKNOWN: Final = "0.1.0 or older"


@dataclass(frozen=True, slots=True)
class Vitals:
    """What one service says of itself."""

    context: str
    ready: bool
    missing: tuple[str, ...]
    samples: tuple[tuple[str, Mapping[str, str], float], ...]
    """Its metrics: name, labels, value."""

    def values(self, name: str, label: str = "") -> Iterator[tuple[str, float]]:
        """The samples of a metric, each with the value of one of its labels."""
        for found, labels, value in self.samples:
            if found == name:
                yield labels.get(label, ""), value


async def checks(
    addresses: Mapping[str, str], own: str = "", clock: Callable[[], datetime] = now
) -> list[Check]:
    """All checks.

    Args:
        addresses: service → the address of its operations port, `http://HOST:PORT`.
        own: the release of this command.
        clock: tells the time.
    """
    if not addresses:
        return [
            skipped(name, "set EVERGREEN_OPS_TARGET to the services' operations ports"
                          " ({context}:9464)")
            for name in NAMES
        ]  # fmt: skip
    async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
        asked = await asyncio.gather(
            *(_ask(client, context, address) for context, address in addresses.items())
        )
    known = [found for found in asked if isinstance(found, Vitals)]
    found = [
        judged(READY, _not_ready(asked), f"{', '.join(vitals.context for vitals in known)}"),
    ]
    if not known:
        return [*found, *(skipped(name, f"needs {READY}") for name in NAMES[1:])]
    own = own or build.VERSION
    return [
        *found,
        judged(VERSION, _versions(known, own), own),
        judged(FEEDS, _stale(known, clock().timestamp()), "all were read within a minute"),
        judged(BACKLOG, _waiting(known), "no event waits to be published"),
        judged(FORWARDERS, _behind(known), "none is behind"),
        judged(MAIL, _mail(known), "no mail waits for long"),
        _certificates(known, clock().timestamp()),
        *_witnesses(known, clock().timestamp()),
        *_cryptography(known),
        *_suites(known),
    ]


def _cryptography(known: Sequence[Vitals]) -> Iterator[Check]:
    """Whether all services use one FIPS module; nothing where none does and nobody wants it."""
    modules = {
        vitals.context: f"{labels['name']} {labels['version']}, SHA-256 {labels['sha256']}"
        for vitals in known
        for name, labels, _ in vitals.samples
        if name == "evergreen_fips_info"
    }
    without = sorted({vitals.context for vitals in known} - modules.keys())
    if not modules and not mode.is_required():
        return
    found = []
    if without:
        found.append(
            Finding(
                "FIPS_OFF",
                f"FIPS mode is off in {', '.join(without)}.",
                "Set EVERGREEN_FIPS=required for all services and commands.",
            )
        )
    if modules and not mode.is_required():
        found.append(
            warning(
                "COMMAND_NOT_FIPS",
                "The services are in FIPS mode, and this command is not: backups and keys that it"
                " makes are of other algorithms.",
                "Set EVERGREEN_FIPS=required for commands, too.",
            )
        )
    different = sorted(set(modules.values()))
    if len(different) > 1:
        found.append(
            warning(
                "FIPS_MODULES_DIFFER",
                f"The services use {len(different)} modules: {'; '.join(different)}.",
                "Install the same module everywhere.",
            )
        )
    yield judged(FIPS, found, "; ".join(different))


def _suites(known: Sequence[Vitals]) -> Iterator[Check]:
    """Whether all services make new values alike; nothing where all use the standard algorithms."""
    everyone = {vitals.context for vitals in known}
    approved = {vitals.context for vitals in known if any(vitals.values("evergreen_suites_info"))}
    if not approved and not mode.writes_approved():
        return
    found = []
    if standard := sorted(everyone - approved):
        found.append(
            warning(
                "SUITES_DIFFER",
                f"New values are made with standard algorithms by {', '.join(standard)}.",
                "Set EVERGREEN_SUITES=approved for all services and commands: until then `evergreen"
                " fips migrate` has something to do each time (docs/fips.md).",
            )
        )
    yield judged(SUITES, found, "new values are made with approved algorithms")


async def _ask(client: httpx.AsyncClient, context: str, address: str) -> Vitals | Finding:
    try:
        answer = await client.get(f"{address}/readyz")
        said = answer.json()
        metrics = (await client.get(f"{address}/metrics")).text
        samples = tuple(
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(metrics)
            for sample in family.samples
        )
        missing = tuple(map(str, said.get("missing", ())))
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        return Finding(
            "SERVICE_UNREACHABLE",
            f"{context} does not answer at {address}: {error or type(error).__name__}",
            "See the end of its log; it is started again by itself if it ended.",
        )
    return Vitals(context, answer.status_code == httpx.codes.OK, missing, samples)


def _not_ready(asked: Sequence[Vitals | Finding]) -> Iterator[Finding]:
    for found in asked:
        if isinstance(found, Finding):
            yield found
        elif not found.ready:
            yield Finding(
                "SERVICE_NOT_READY",
                f"{found.context} lacks: {', '.join(found.missing)}",
                "See EvergreenNotReady in docs/runbooks.md, and the service's log.",
            )


def _behind(known: Sequence[Vitals]) -> Iterator[Finding]:
    """Forwarders that the audit log is ahead of."""
    for vitals in known:
        for forwarder, seconds in vitals.values("evergreen_forwarder_oldest_seconds", "forwarder"):
            if seconds > _FORWARDER_SECONDS:
                yield warning(
                    "FORWARDER_BEHIND",
                    f"the forwarder {forwarder} has not sent an entry of {seconds / 60:.0f} minutes"
                    " ago",
                    f"`evergreen forwarders show {forwarder}` says why; nothing is lost meanwhile."
                    " See docs/forwarding.md.",
                )


def _witnesses(known: Sequence[Vitals], at: float) -> Iterator[Check]:
    """Whether witnesses sign the audit log; nothing where none is asked."""
    # Of several processes, one that a witness signs for will do.
    away: dict[str, float] = {}
    for vitals in known:
        for name, since in vitals.values(
            "evergreen_audit_witness_away_timestamp_seconds", "witness"
        ):
            away[name] = min(away.get(name, since), since)
    if not away:
        return
    found = [
        warning(
            "WITNESS_AWAY",
            f"the witness {name} has not signed the audit log for {(at - since) / 60:.0f} minutes",
            "The log of the audit service says why. See EvergreenWitnessAway in docs/runbooks.md.",
        )
        for name, since in sorted(away.items())
        if since and at - since > _WITNESS_SECONDS
    ]
    yield judged(WITNESSES, found, ", ".join(sorted(away)))


def _mail(known: Sequence[Vitals]) -> Iterator[Finding]:
    """Mails that the mail server does not take."""
    for vitals in known:
        for _, seconds in vitals.values("evergreen_mails_oldest_seconds"):
            if seconds > _MAIL_SECONDS:
                yield warning(
                    "MAIL_WAITS",
                    f"a mail has waited for the mail server for {seconds / 60:.0f} minutes",
                    "`evergreen mail status` says why; invitations can be handed over as links"
                    " meanwhile. See docs/mail.md.",
                )


def _versions(known: Sequence[Vitals], own: str) -> Iterator[Finding]:
    """Whether all are of the release that this command is of."""
    running = {
        vitals.context: next(
            (said for said, _ in vitals.values("evergreen_build_info", "version")), _UNKNOWN
        )
        for vitals in known
    }
    others = {context: release for context, release in running.items() if release != own}
    if others:
        told = ", ".join(f"{context} is {release}" for context, release in others.items())
        yield warning(
            "VERSION_MISMATCH",
            f"not everything is of one release: {told}, this command is {own}",
            "Finish the upgrade: one release back works beside this one, further back is not"
            " tested. With containers, an image that was built again under the same tag needs"
            " its containers made anew (docker compose up --force-recreate, or the digest).",
        )


def _stale(known: Sequence[Vitals], at: float) -> Iterator[Finding]:
    for vitals in known:
        for feed, last in vitals.values("evergreen_feed_last_read_timestamp_seconds", "feed"):
            if at - last > _STALE_SECONDS:
                since = f"for {at - last:.0f} seconds" if last else "since it was started"
                yield Finding(
                    "FEED_STALE",
                    f"{vitals.context} could not read the feed {feed} {since}: what was decided"
                    " meanwhile (lock-outs, policies, tenants) does not reach it",
                    "See EvergreenFeedStale in docs/runbooks.md, and the service's log.",
                )


def _waiting(known: Sequence[Vitals]) -> Iterator[Finding]:
    for vitals in known:
        for name in ("evergreen_outbox_oldest_seconds", "evergreen_device_events_oldest_seconds"):
            for _, seconds in vitals.values(name):
                if seconds > _BACKLOG_SECONDS:
                    yield warning(
                        "EVENTS_WAIT",
                        f"events of {vitals.context} wait for {seconds:.0f} seconds to be"
                        " published",
                        "See EvergreenEventsWait in docs/runbooks.md. Nothing is lost: they are"
                        " in PostgreSQL.",
                    )


def _certificates(known: Sequence[Vitals], at: float) -> Check:
    """What the services show, trust, and are shown by PostgreSQL and NATS."""
    name = "evergreen_certificate_expiry_timestamp_seconds"
    ends = [
        (end, vitals.context, which)
        for vitals in known
        for which, end in vitals.values(name, "certificate")
    ]
    if not ends:
        return skipped(CERTIFICATES, "between the parts are no certificates")
    found = [
        _ending(context, which, (end - at) / 86400)
        for end, context, which in sorted(ends)
        if end - at < _SOON_DAYS * 86400
    ]
    return judged(
        CERTIFICATES, found, f"the first one ends in {(min(ends)[0] - at) / 86400:.0f} days"
    )


def _ending(context: str, which: str, days: float) -> Finding:
    whose = "its own" if which == "own" else which
    fix = (
        "What renews certificates has not run: see EvergreenCertificateExpires in docs/runbooks.md."
    )
    if days < 0:
        return Finding(
            "INSIDE_CERTIFICATE_EXPIRED", f"{context}: a certificate ({whose}) has ended", fix
        )
    return warning(
        "INSIDE_CERTIFICATE_EXPIRES_SOON",
        f"{context}: a certificate ({whose}) ends in {days:.0f} days",
        fix,
    )
