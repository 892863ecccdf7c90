"""Second factors over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.identity.second_factor.domain import LOCAL_LOGIN, MFA, Factors, strictest
from services.identity.second_factor.passkey_store import Passkey
from services.identity.second_factor.passkeys import Passkeys
from services.identity.second_factor.policies import FoundPolicy, SignInPolicies
from services.identity.second_factor.qr import qr_svg
from services.identity.second_factor.service import SecondFactors


def _factors(factors: Factors, passkeys: Sequence[Passkey] = ()) -> pb.SecondFactors:
    return pb.SecondFactors(
        passkeys=(
            pb.Passkey(
                id=str(one.id),
                name=one.name,
                created_at=timestamp(one.created_at),
                last_used_at=optional_timestamp(one.last_used_at),
                backed_up=one.backed_up,
                site=one.site,
            )
            for one in passkeys
        ),
        totp_since=optional_timestamp(factors.totp_since),
        recovery_codes_left=factors.recovery_codes_left,
        required=factors.required_from is not None,
        required_from=optional_timestamp(factors.required_from),
    )


def _policy(found: FoundPolicy) -> pb.SignInPolicy:
    policy = found.own
    off = policy.mfa == "off"
    return pb.SignInPolicy(
        tenant_id=str(policy.tenant_id),
        mfa=policy.mfa,
        mfa_required_from=None if off else timestamp(policy.required_from),
        effective_mfa=strictest(found.counting),
        local_login=policy.local_login,
        effective_local_login="owners-only" if found.only_owners else "all",
        local_only_users=found.local_only,
    )


class SecondFactorApi(identity_pb2_grpc.SecondFactorServiceServicer):
    """evergreen.v1.SecondFactorService."""

    def __init__(
        self, factors: SecondFactors, passkeys: Passkeys, policies: SignInPolicies
    ) -> None:
        self._factors = factors
        self._passkeys = passkeys
        self._policies = policies

    async def GetSecondFactors(
        self, request: pb.GetSecondFactorsRequest, context: Context
    ) -> pb.SecondFactors:
        """Answers what the caller has."""
        return await self._own(context)

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
        await self._factors.confirm_totp(context.call, request.code)
        return await self._own(context)

    async def DeleteTotp(self, request: pb.DeleteTotpRequest, context: Context) -> pb.SecondFactors:
        """Removes the app."""
        await self._factors.delete_totp(context.call)
        return await self._own(context)

    async def CreatePasskeyOptions(
        self, request: pb.CreatePasskeyOptionsRequest, context: Context
    ) -> pb.PasskeyOptions:
        """Answers what a browser is asked to make."""
        return pb.PasskeyOptions(options=await self._passkeys.creation_options(context.call))

    async def CreatePasskey(
        self, request: pb.CreatePasskeyRequest, context: Context
    ) -> pb.SecondFactors:
        """Adds a passkey."""
        await self._passkeys.add(context.call, request.name, request.credential)
        return await self._own(context)

    async def DeletePasskey(
        self, request: pb.DeletePasskeyRequest, context: Context
    ) -> pb.SecondFactors:
        """Removes a passkey."""
        await self._passkeys.remove(context.call, UUID(request.id))
        return await self._own(context)

    async def _own(self, context: Context) -> pb.SecondFactors:
        passkeys = await self._passkeys.own(context.call)
        return _factors(await self._factors.own(context.call), passkeys)

    async def ResetSecondFactors(
        self, request: pb.ResetSecondFactorsRequest, context: Context
    ) -> pb.SecondFactors:
        """Removes a user's factors."""
        return _factors(await self._factors.reset(context.call, UUID(request.id)))

    async def GetSignInPolicy(
        self, request: pb.GetSignInPolicyRequest, context: Context
    ) -> pb.SignInPolicy:
        """Answers a tenant's policy."""
        return _policy(await self._policies.get(context.call, UUID(request.id)))

    async def UpdateSignInPolicy(
        self, request: pb.UpdateSignInPolicyRequest, context: Context
    ) -> pb.SignInPolicy:
        """Changes a tenant's policy."""
        mfa = next((one for one in MFA if one == request.mfa), None)
        local_login = next((one for one in LOCAL_LOGIN if one == request.local_login), None)
        changed = await self._policies.update(
            context.call,
            UUID(request.id),
            mfa if request.HasField("mfa") else None,
            request.grace_days if request.HasField("grace_days") else None,
            local_login,
        )
        return _policy(changed)
