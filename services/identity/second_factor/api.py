"""Second factors over gRPC."""

from __future__ import annotations

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp
from services.identity.second_factor.domain import Factors
from services.identity.second_factor.qr import qr_svg
from services.identity.second_factor.service import SecondFactors


def _factors(factors: Factors) -> pb.SecondFactors:
    return pb.SecondFactors(
        totp_since=optional_timestamp(factors.totp_since),
        recovery_codes_left=factors.recovery_codes_left,
        required=factors.required_from is not None,
        required_from=optional_timestamp(factors.required_from),
    )


class SecondFactorApi(identity_pb2_grpc.SecondFactorServiceServicer):
    """evergreen.v1.SecondFactorService."""

    def __init__(self, factors: SecondFactors) -> None:
        self._factors = factors

    async def GetSecondFactors(
        self, request: pb.GetSecondFactorsRequest, context: Context
    ) -> pb.SecondFactors:
        """Answers what the caller has."""
        return _factors(await self._factors.own(context.call))

    async def CreateRecoveryCodes(
        self, request: pb.CreateRecoveryCodesRequest, context: Context
    ) -> pb.RecoveryCodes:
        """Makes recovery codes."""
        return pb.RecoveryCodes(codes=await self._factors.create_recovery_codes(context.call))

    async def CreateTotp(self, request: pb.CreateTotpRequest, context: Context) -> pb.TotpKey:
        """Makes a key of an app."""
        key = await self._factors.create_totp(context.call)
        return pb.TotpKey(secret=key.secret, uri=key.uri, qr_svg=qr_svg(key.uri))

    async def ConfirmTotp(
        self, request: pb.ConfirmTotpRequest, context: Context
    ) -> pb.SecondFactors:
        """Confirms a key."""
        return _factors(await self._factors.confirm_totp(context.call, request.code))

    async def DeleteTotp(self, request: pb.DeleteTotpRequest, context: Context) -> pb.SecondFactors:
        """Removes the app."""
        return _factors(await self._factors.delete_totp(context.call))
