"""Mail over gRPC."""

from __future__ import annotations

from typing import Final

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp
from services.identity.mail.domain import MailServer
from services.identity.mail.operations import MailOperations

_SCHEMES: Final = {"smtps": "smtps", "starttls": "smtp+starttls", "none": "smtp"}


def _shown(server: MailServer | None) -> str:
    return f"{_SCHEMES[server.tls]}://{server.host}:{server.port}" if server else ""


class MailApi(identity_pb2_grpc.MailServiceServicer):
    """evergreen.v1.MailService."""

    def __init__(self, operations: MailOperations) -> None:
        self._operations = operations

    async def GetMailStatus(
        self, request: pb.GetMailStatusRequest, context: Context
    ) -> pb.MailStatus:
        """Says how mail is."""
        found = await self._operations.status(context.call)
        server = self._operations.server
        return pb.MailStatus(
            on=server is not None,
            server=_shown(server),
            sender=str(server.sender) if server else "",
            waiting=found.waiting,
            oldest_at=optional_timestamp(found.oldest_at),
            sent=found.sent,
            refused=found.refused,
            expired=found.expired,
            last_refusal=found.last_refusal,
            last_success_at=optional_timestamp(found.server.last_success_at),
            failing_since=optional_timestamp(found.server.failing_since),
            last_error=found.server.last_error,
            last_error_at=optional_timestamp(found.server.last_error_at),
        )

    async def TestMail(self, request: pb.TestMailRequest, context: Context) -> pb.TestMailResponse:
        """Sends a mail for a try."""
        tried = await self._operations.test(context.call, request.address)
        return pb.TestMailResponse(
            sent=not tried.error, error=tried.error, advice=tried.advice, took_ms=tried.took_ms
        )
