"""Has witnesses sign what the tree has grown to: others, who remember what it was.

What a witness knows is known by the witness alone: one that knows another size says so, and is
asked again from there. So a process keeps nothing, and each of several asks for itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Counter, Gauge

from auditlog.notes import NoteError, Signature, TreeCheckpoint
from auditlog.witnesses import (
    Policy,
    Request,
    Witness,
    cosigned_at,
    read_answer,
    read_size,
)
from servicekit.call import begin_background_call
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.outgoing.addresses import NotConnectedError
from servicekit.outgoing.guard import Guard
from servicekit.outgoing.http import Backend
from services.audit.tree.service import Tree

log = logs.get(__name__)

_SIGNED: Final = Gauge(
    "evergreen_audit_witnessed_size",
    "Leaves of the newest tree that a witness signed.",
    ["witness"],
)
_FAILED: Final = Counter(
    "evergreen_audit_witness_failures_total",
    "Times that a witness did not sign, by the reason.",
    ["witness", "reason"],
)
_AWAY: Final = Gauge(
    "evergreen_audit_witness_away_timestamp_seconds",
    "Since when a witness does not sign; 0 while it does.",
    ["witness"],
)
_LOOK_SECONDS: Final = 10.0
_AGAIN: Final = timedelta(hours=1)
"""So often a tree that does not grow is signed again: what is signed has the time in it."""
_SECONDS: Final = 10.0
_MOST_OF_AN_ANSWER: Final = 16 << 10
_OK, _CONFLICT = 200, 409


@dataclass(frozen=True, slots=True)
class Away:
    """A witness that does not sign."""

    name: str
    """In the policy."""
    since: datetime
    """When it was first asked in vain, since it last signed or the process began."""
    reason: str
    """Of the last time."""


class NotSignedError(Exception):
    """A witness did not sign; `reason` is UPPER_SNAKE."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Witnesses:
    """Asks the witnesses of a policy, a few seconds after the tree has grown.

    Args:
        tree: what they sign.
        policy: whom it asks, and how many of them are enough.
        guard: connects, as for forwarders of the operator.
        clock: the time.
    """

    def __init__(self, tree: Tree, policy: Policy, guard: Guard, clock: Clock) -> None:
        self._tree = tree
        self._policy = policy
        self._clock = clock
        self._guard = guard
        self._asked = [one for one in policy.witnesses.values() if one.url]
        self._sizes: dict[tuple[str, str], int] = {}
        """Log and witness → the size that the witness knows, as far as this process has heard."""
        self._signed: dict[str, tuple[TreeCheckpoint, Signature, datetime]] = {}
        self._away: dict[str, Away] = {}
        for one in self._asked:
            _AWAY.labels(one.name).set(0)
        self._outages = {
            name: Repeated(log, "tree of the audit log not witnessed") for name in policy.witnesses
        }
        self._context = ssl.create_default_context()
        tree.asks_witnesses = True

    async def run(self) -> None:
        """Asks them, for as long as the service lives."""
        outage = Repeated(log, "witnesses of the audit log not asked")
        while True:
            begin_background_call()
            try:
                await self.ask()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    def away(self) -> Sequence[Away]:
        """Which of them do not sign, as far as this process has asked."""
        return list(self._away.values())

    async def ask(self) -> None:
        """Has all witnesses sign the newest checkpoint, unless they just have."""
        checkpoint = await self._tree.checkpoint()
        if checkpoint.size == 0:
            return
        await asyncio.gather(*(self._ask_one(one, checkpoint) for one in self._asked))
        of_each = ((one.name, self._signed.get(one.name)) for one in self._asked)
        found = {name: own[1] for name, own in of_each if own and own[0].text == checkpoint.text}
        if self._policy.is_met(found):
            signatures = (*checkpoint.signatures, *found.values())
            self._tree.witness(replace(checkpoint, signatures=signatures))

    async def _ask_one(self, witness: Witness, checkpoint: TreeCheckpoint) -> None:
        known = self._signed.get(witness.name)
        now = self._clock()
        if known and known[0].text == checkpoint.text and now - known[2] < _AGAIN:
            return
        try:
            async with asyncio.timeout(_SECONDS):
                signature = await self._cosigned(witness, checkpoint)
        except NotSignedError as error:
            reason = error.reason
        except NotConnectedError as error:
            reason = error.reason
        except TimeoutError:
            reason = "TIMEOUT"
        except ssl.SSLError:
            reason = "TLS_FAILED"
        except OSError:
            reason = "CONNECTION_LOST"
        else:
            self._signed[witness.name] = checkpoint, signature, now
            _SIGNED.labels(witness.name).set(checkpoint.size)
            self._outages[witness.name].worked()
            self._away.pop(witness.name, None)
            _AWAY.labels(witness.name).set(0)
            return
        _FAILED.labels(witness.name, reason).inc()
        known_away = self._away.get(witness.name)
        since = known_away.since if known_away else now
        self._away[witness.name] = Away(witness.name, since, reason)
        _AWAY.labels(witness.name).set(since.timestamp())
        self._outages[witness.name].failed(NotSignedError(f"{witness.name}: {reason}"))

    async def _cosigned(self, witness: Witness, checkpoint: TreeCheckpoint) -> Signature:
        """The signature of a witness.

        Raises:
            NotSignedError, NotConnectedError, OSError: there is none.
        """
        place = checkpoint.origin, witness.name
        for _ in range(2):
            old = self._sizes.get(place, 0)
            hashes = await self._tree.grown(old, checkpoint)
            if hashes is None:
                # Another process has asked for a larger tree since, or the tree was larger once.
                self._sizes.pop(place, None)
                raise NotSignedError("KNOWS_A_LARGER_TREE")
            status, body = await self._post(witness, Request(old, hashes, checkpoint).write())
            try:
                if status == _OK:
                    signature = _its(witness, checkpoint, read_answer(body))
                    self._sizes[place] = checkpoint.size
                    return signature
                if status != _CONFLICT:
                    raise NotSignedError(f"STATUS_{status}")
                self._sizes[place] = read_size(body)
            except NoteError as wrong:
                raise NotSignedError("NO_SIGNATURE") from wrong
        raise NotSignedError("KNOWS_ANOTHER_SIZE")

    async def _post(self, witness: Witness, body: str) -> tuple[int, str]:
        """Asks; answers status and body.

        Raises:
            NotSignedError, NotConnectedError, OSError: there is no answer.
        """
        import httpcore  # noqa: PLC0415 - only installations with witnesses load it

        plain = witness.url.startswith("http://")
        backend = Backend(self._guard, _MOST_OF_AN_ANSWER, root=True, plain_http=plain)
        async with httpcore.AsyncConnectionPool(
            ssl_context=None if plain else self._context,
            max_connections=1,
            network_backend=backend,  # type: ignore[arg-type]  # it is one in all but name
        ) as client:
            try:
                answer = await client.request(
                    "POST",
                    f"{witness.url}/add-checkpoint",
                    headers=[("content-type", "text/plain"), ("user-agent", "evergreen")],
                    content=body.encode(),
                )
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                raise NotSignedError("NO_HTTP_ANSWER") from error
        return answer.status, answer.content.decode("utf-8", "replace")


def _its(
    witness: Witness, checkpoint: TreeCheckpoint, signatures: Iterable[Signature]
) -> Signature:
    """The signature of the witness itself, among what it answered.

    Raises:
        NoteError: it is not there, or is forged.
    """
    found = tuple(signatures)
    at = cosigned_at(checkpoint, witness.key, found)
    value = witness.key.among(found)
    if at is None or value is None:
        raise NoteError("it did not sign with the key of the policy")
    return witness.key.signature(value)
