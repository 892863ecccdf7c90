"""SCIM's protocol over HTTP (RFC 7644) at `/scim/v2`, behind the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from contract.access import SCIM_READ, SCIM_WRITE
from servicekit.call import H_REQUEST_ID, HEADERS, TOKEN_HEADERS, Call
from servicekit.errors import (
    HTTP_STATUS,
    Code,
    DomainError,
    not_found,
    retry_after_header,
)
from servicekit.rpc.chain import CallChain
from services.identity.scim import filters, resources, schemas
from services.identity.scim.domain import BASE, refused
from services.identity.scim.filters import Filter
from services.identity.scim.provisioning import Provisioning, ShownGroup, ShownUser
from services.identity.scim.schemas import ERROR, LIST, MEDIA, MOST_OF_PAGE, PAGE

_MOST_BODY: Final = 256 << 10
_KEPT: Final = (*HEADERS, *TOKEN_HEADERS)
_NOT_OFFERED: Final = frozenset({"Bulk", "Me"})
_SEARCH: Final = ".search"
_ALLOW: Final = "allow"

Asked: TypeAlias = Mapping[str, str]
"""What a client asks for in the query, or in the body of a search."""


class _Answer(JSONResponse):
    media_type = MEDIA


def add_scim(app: FastAPI, chain: CallChain, provisioning: Provisioning, public_url: str) -> None:
    """Adds SCIM's addresses.

    Args:
        public_url: where the gateway is reached; as the client says, where it is empty.
    """
    scim = _Scim(provisioning, public_url.rstrip("/"))

    @app.api_route(f"{BASE}/{{path:path}}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def serve(request: Request, path: str) -> Response:
        said = {name: request.headers[name] for name in _KEPT if name in request.headers}
        rpc = SCIM_READ if request.method == "GET" else SCIM_WRITE
        try:
            return await chain.run(rpc, said, lambda call: scim.serve(call, request, path))
        except DomainError as error:
            return _error(error, request.headers.get(H_REQUEST_ID, ""))


class _Scim:
    """One request after the other, for the pipeline."""

    def __init__(self, provisioning: Provisioning, public_url: str) -> None:
        self._provisioning = provisioning
        self._public_url = public_url

    async def serve(self, call: Call, request: Request, path: str) -> Response:
        """Answers a request of a source.

        Raises:
            DomainError: what the client is told.
        """
        base = (self._public_url or f"https://{request.headers.get('host', '')}") + BASE
        kind, _, name = path.strip("/").partition("/")
        if kind in _NOT_OFFERED:
            raise DomainError(
                Code.UNIMPLEMENTED,
                "NOT_OFFERED",
                f"/{path}: is not offered; see /ServiceProviderConfig",
            )
        offered = self._offered(kind, name, base)
        if offered is not None:
            _only(request, "GET")
            if "filter" in request.query_params:
                raise DomainError(Code.PERMISSION_DENIED, "NO_FILTER", f"/{kind}: takes no filter")
            return _Answer(offered)
        users, groups = _Users(self._provisioning, base), _Groups(self._provisioning, base)
        if kind == _SEARCH and not name:
            _only(request, "POST")
            return await _searched(call, await _search(request), users, groups)
        if kind == "Users" and "/" not in name:
            return await users.serve(call, request, name)
        if kind == "Groups" and "/" not in name:
            return await groups.serve(call, request, name)
        raise not_found("resource", path)

    @staticmethod
    def _offered(kind: str, name: str, base: str) -> Any:
        """What is the same for everybody; `None` for anything else."""
        if kind == "ServiceProviderConfig" and not name:
            return schemas.configuration(base)
        several = {"Schemas": schemas.schemas, "ResourceTypes": schemas.resource_types}.get(kind)
        if several is None:
            return None
        found = several(base)
        if not name:
            return _list(len(found), 1, list(found.values()))
        if name not in found:
            raise not_found("resource", f"{kind}/{name}")
        return found[name]


class _Users:
    """`/Users`."""

    def __init__(self, provisioning: Provisioning, base: str) -> None:
        self._provisioning = provisioning
        self._base = base

    async def serve(self, call: Call, request: Request, user_id: str) -> Response:
        """Answers a request."""
        use = self._provisioning
        if user_id == _SEARCH:
            _only(request, "POST")
            return await _searched(call, await _search(request), self)
        select = _selection(request.query_params)
        if not user_id:
            _only(request, "GET", "POST")
            if request.method == "GET":
                return await _searched(call, request.query_params, self)
            made = await use.create_user(call, await _body(request))
            return self._one(made, select, 201)
        match = request.headers.get("if-match", "")
        _only(request, "GET", "PUT", "PATCH", "DELETE")
        if request.method == "DELETE":
            await use.delete_user(call, user_id, match)
            return Response(status_code=204)
        if request.method == "GET":
            shown = await use.user(call, user_id)
            if _is_known(request, shown.user.version):
                return Response(status_code=304, headers={"etag": shown.user.version})
        else:
            change = use.replace_user if request.method == "PUT" else use.patch_user
            shown = await change(call, user_id, await _body(request), match)
        return self._one(shown, select)

    async def search(
        self, call: Call, asked: Asked, found: Filter | None, start: int, count: int
    ) -> tuple[int, list[dict[str, Any]]]:
        """Those for whom a filter holds, and how many they are."""
        total, users = await self._provisioning.users(call, found, start, count)
        return total, [self._json(one) for one in users]

    def _json(self, shown: ShownUser) -> dict[str, Any]:
        return resources.user_json(shown.user, shown.groups, self._base)

    def _one(
        self,
        shown: ShownUser,
        select: Callable[[dict[str, Any]], dict[str, Any]],
        status: int = 200,
    ) -> Response:
        said = self._json(shown)
        return _resource(said, select, shown.user.version, status)


class _Groups:
    """`/Groups`."""

    def __init__(self, provisioning: Provisioning, base: str) -> None:
        self._provisioning = provisioning
        self._base = base

    async def serve(self, call: Call, request: Request, group_id: str) -> Response:
        """Answers a request."""
        use = self._provisioning
        if group_id == _SEARCH:
            _only(request, "POST")
            return await _searched(call, await _search(request), self)
        select = _selection(request.query_params)
        members = _wants_members(request.query_params)
        if not group_id:
            _only(request, "GET", "POST")
            if request.method == "GET":
                return await _searched(call, request.query_params, self)
            made = await use.create_group(call, await _body(request))
            return self._one(made, select, 201)
        match = request.headers.get("if-match", "")
        _only(request, "GET", "PUT", "PATCH", "DELETE")
        if request.method == "DELETE":
            await use.delete_group(call, group_id, match)
            return Response(status_code=204)
        if request.method == "GET":
            shown = await use.group(call, group_id, members=members)
            if _is_known(request, shown.group.version):
                return Response(status_code=304, headers={"etag": shown.group.version})
        else:
            change = use.replace_group if request.method == "PUT" else use.patch_group
            body = await _body(request)
            # A provider sends a member a call: telling it all the others each time grows with both.
            brief = request.method == "PATCH" and not request.query_params.keys() & _SELECTING
            shown = await change(call, group_id, body, match, members=members and not brief)
            if brief:
                location = self._json(shown)["meta"]["location"]
                headers = {"etag": shown.group.version, "location": location}
                return Response(status_code=204, headers=headers)
        return self._one(shown, select)

    async def search(
        self, call: Call, asked: Asked, found: Filter | None, start: int, count: int
    ) -> tuple[int, list[dict[str, Any]]]:
        """As `_Users.search`."""
        members = _wants_members(asked)
        total, groups = await self._provisioning.groups(call, found, start, count, members=members)
        return total, [self._json(one) for one in groups]

    def _json(self, shown: ShownGroup) -> dict[str, Any]:
        return resources.group_json(shown.group, shown.members, self._base)

    def _one(
        self,
        shown: ShownGroup,
        select: Callable[[dict[str, Any]], dict[str, Any]],
        status: int = 200,
    ) -> Response:
        return _resource(self._json(shown), select, shown.group.version, status)


def _resource(
    said: dict[str, Any],
    select: Callable[[dict[str, Any]], dict[str, Any]],
    version: str,
    status: int,
) -> Response:
    headers = {"etag": version, "location": said["meta"]["location"]}
    return _Answer(select(said), status_code=status, headers=headers)


def _list(total: int, start: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schemas": [LIST],
        "totalResults": total,
        "startIndex": start,
        "itemsPerPage": len(found),
        "Resources": found,
    }


def _only(request: Request, *verbs: str) -> None:
    if request.method not in verbs:
        raise DomainError(
            Code.UNIMPLEMENTED,
            "WRONG_METHOD",
            f"this address takes {', '.join(verbs)}",
            metadata={_ALLOW: ", ".join(verbs)},
            http_status=405,
        )


def _selection(asked: Asked) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return resources.selection(asked.get("attributes", ""), asked.get("excludedAttributes", ""))


_SELECTING: Final = frozenset({"attributes", "excludedAttributes"})


def _wants_members(asked: Asked) -> bool:
    only = resources.names(asked.get("attributes", ""))
    without = resources.selected_whole(asked.get("excludedAttributes", ""))
    return ("members" in only or not only) and "members" not in without


async def _searched(call: Call, asked: Asked, *kinds: _Users | _Groups) -> Response:
    """A page of resources, of one kind or of several after each other."""
    text = asked.get("filter", "")
    found = filters.parse(text) if text.strip() else None
    start = max(1, _number("startIndex", asked.get("startIndex"), 1))
    count = min(MOST_OF_PAGE, max(0, _number("count", asked.get("count"), PAGE)))
    select = _selection(asked)
    total, shown = 0, list[dict[str, Any]]()
    refusals = []
    for kind in kinds:
        try:
            many, page = await kind.search(
                call, asked, found, max(1, start - total), count - len(shown)
            )
        except DomainError as error:
            # What one kind has, another need not have.
            if error.metadata.get("scimType") != "invalidFilter":
                raise
            refusals.append(error)
            continue
        total += many
        shown += page
    if len(refusals) == len(kinds):
        raise refusals[0]
    return _Answer(_list(total, start, [select(one) for one in shown]))


async def _search(request: Request) -> Asked:
    """What a search asks for in its body (RFC 7644, section 3.4.3)."""
    asked = {}
    body = await _body(request)
    resources.check_schemas(body, schemas.SEARCH, {schemas.SEARCH})
    for name, value in body.items():
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            asked[name] = ",".join(value)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            asked[name] = str(value)
        elif value is not None:
            raise refused("invalidValue", f"{name[:60]}: must be a text, a number or texts")
    return asked


def _number(name: str, text: str | None, usual: int) -> int:
    if text is None or not text.strip():
        return usual
    try:
        number = int(text)
    except ValueError:
        raise refused("invalidValue", f"{name}: must be a whole number") from None
    # What the database can count.
    return max(-1, min(number, 1 << 31))


def _is_known(request: Request, version: str) -> bool:
    """Whether the client has this version already (`If-None-Match`)."""
    known = request.headers.get("if-none-match", "")
    return version.removeprefix("W/") in {
        one.strip().removeprefix("W/") for one in known.split(",")
    }


async def _body(request: Request) -> Mapping[str, Any]:
    media = request.headers.get("content-type", MEDIA).partition(";")[0].strip().lower()
    if media not in {MEDIA, "application/json"}:
        raise DomainError(
            Code.INVALID_ARGUMENT,
            "WRONG_MEDIA_TYPE",
            f"the content type must be {MEDIA}",
            http_status=415,
        )
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BODY:
            raise DomainError(
                Code.INVALID_ARGUMENT, "TOO_LARGE", "the body is too large", http_status=413
            )
        parts.append(part)
    try:
        found = json.loads(b"".join(parts), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise refused("invalidSyntax", "the body is not valid JSON") from None
    if not isinstance(found, dict):
        raise refused("invalidSyntax", "the body must be a JSON object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(text)


def _error(error: DomainError, request_id: str) -> Response:
    """An error in SCIM's form (RFC 7644, section 3.12)."""
    status = error.http_status or HTTP_STATUS[error.code]
    # What the client sent may be half of a pair of surrogates, which cannot be sent back.
    detail = error.message.encode(errors="replace").decode()
    said: dict[str, Any] = {"schemas": [ERROR], "status": str(status), "detail": detail}
    if scim_type := error.metadata.get("scimType", ""):
        said["scimType"] = scim_type
    elif error.code is Code.INVALID_ARGUMENT and status == HTTP_STATUS[error.code]:
        said["scimType"] = "invalidValue"
    headers = {H_REQUEST_ID: request_id} if request_id else {}
    if (delay := retry_after_header(error)) is not None:
        headers["retry-after"] = delay
    if (allowed := error.metadata.get(_ALLOW)) is not None:
        headers[_ALLOW] = allowed
    return _Answer(said, status_code=status, headers=headers)
