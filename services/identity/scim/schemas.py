"""What is offered of SCIM: resource types, their attributes, and the configuration (RFC 7643,
sections 5 to 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

USER: Final = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP: Final = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE: Final = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
LIST: Final = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
PATCH: Final = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
SEARCH: Final = "urn:ietf:params:scim:api:messages:2.0:SearchRequest"
ERROR: Final = "urn:ietf:params:scim:api:messages:2.0:Error"
_SCHEMA: Final = "urn:ietf:params:scim:schemas:core:2.0:Schema"
_TYPE: Final = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
_CONFIG: Final = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
MEDIA: Final = "application/scim+json"
PAGE: Final = 100
MOST_OF_PAGE: Final = 200

IGNORED: Final = frozenset(
    {
        "nickname", "profileurl", "title", "usertype", "preferredlanguage", "locale", "timezone",
        "password", "phonenumbers", "ims", "photos", "addresses", "entitlements", "roles",
        "x509certificates",
    }
)  # fmt: skip
"""Attributes of the standard's users, in lower case, that are taken and not kept. A password above
all: nobody who comes from elsewhere has one here."""
IGNORED_NAMES: Final = frozenset({"middlename", "honorificprefix", "honorificsuffix"})
"""The same of their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attribute:
    name: str
    about: str
    type: str = "string"
    many: bool = False
    required: bool = False
    exact: bool = False
    mutability: str = "readWrite"
    uniqueness: str = "none"
    values: tuple[str, ...] = ()
    refers_to: tuple[str, ...] = ()
    subs: tuple[_Attribute, ...] = ()

    def as_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "multiValued": self.many,
            "description": self.about,
            "required": self.required,
            "mutability": self.mutability,
            "returned": "default",
        }
        if self.type != "complex":
            said |= {"caseExact": self.exact, "uniqueness": self.uniqueness}
        if self.values:
            said["canonicalValues"] = list(self.values)
        if self.refers_to:
            said["referenceTypes"] = list(self.refers_to)
        if self.subs:
            said["subAttributes"] = [sub.as_json() for sub in self.subs]
        return said


_USER: Final = (
    _Attribute(
        name="userName",
        about="What the person is called; where it is an e-mail address, the account's.",
        required=True,
        uniqueness="server",
    ),
    _Attribute(
        name="name",
        about="The person's name.",
        type="complex",
        subs=(
            _Attribute(name="formatted", about="The whole name."),
            _Attribute(name="familyName", about="The family name."),
            _Attribute(name="givenName", about="The given name."),
        ),
    ),
    _Attribute(name="displayName", about="The name that is shown."),
    _Attribute(
        name="active", about="Whether the person may come in.", type="boolean", required=True
    ),
    _Attribute(
        name="emails",
        about="E-mail addresses; the primary one is the account's where userName is none.",
        type="complex",
        many=True,
        subs=(
            _Attribute(name="value", about="The address."),
            _Attribute(name="display", about="The address as it is shown."),
            _Attribute(name="type", about="What it is for.", values=("work", "home", "other")),
            _Attribute(name="primary", about="Whether it is the main one.", type="boolean"),
        ),
    ),
    _Attribute(
        name="groups",
        about="The groups that the person is in.",
        type="complex",
        many=True,
        mutability="readOnly",
        subs=(
            _Attribute(name="value", about="The group's id.", exact=True, mutability="readOnly"),
            _Attribute(
                name="$ref",
                about="The group's address.",
                type="reference",
                exact=True,
                mutability="readOnly",
                refers_to=("Group",),
            ),
            _Attribute(name="display", about="The group's name.", mutability="readOnly"),
        ),
    ),
)
_GROUP: Final = (
    _Attribute(
        name="displayName",
        about="The group's name, by which role mappings name it.",
        required=True,
        uniqueness="server",
    ),
    _Attribute(
        name="members",
        about="The people in the group.",
        type="complex",
        many=True,
        subs=(
            _Attribute(name="value", about="The person's id.", exact=True, mutability="immutable"),
            _Attribute(
                name="$ref",
                about="The person's address.",
                type="reference",
                exact=True,
                mutability="immutable",
                refers_to=("User",),
            ),
            _Attribute(name="type", about="What it is.", mutability="immutable", values=("User",)),
        ),
    ),
)
_SCHEMAS: Final = {
    USER: ("User", "A person.", _USER),
    GROUP: ("Group", "A group of people.", _GROUP),
}


def schemas(base: str) -> dict[str, dict[str, Any]]:
    """The schemas by their ids."""
    return {
        schema: {
            "schemas": [_SCHEMA],
            "id": schema,
            "name": name,
            "description": about,
            "attributes": [attribute.as_json() for attribute in attributes],
            "meta": {"resourceType": "Schema", "location": f"{base}/Schemas/{schema}"},
        }
        for schema, (name, about, attributes) in _SCHEMAS.items()
    }


def resource_types(base: str) -> dict[str, dict[str, Any]]:
    """The resource types by their ids."""
    return {
        name: {
            "schemas": [_TYPE],
            "id": name,
            "name": name,
            "description": about,
            "endpoint": f"/{name}s",
            "schema": schema,
            "meta": {"resourceType": "ResourceType", "location": f"{base}/ResourceTypes/{name}"},
        }
        for schema, (name, about, _) in _SCHEMAS.items()
    }


def configuration(base: str) -> Mapping[str, Any]:
    """What is offered."""
    return {
        "schemas": [_CONFIG],
        "patch": {"supported": True},
        "bulk": {"supported": False, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": True, "maxResults": MOST_OF_PAGE},
        "changePassword": {"supported": False},
        "sort": {"supported": False},
        "etag": {"supported": True},
        "authenticationSchemes": [
            {
                "type": "oauthbearertoken",
                "name": "Bearer token",
                "description": "A token of the SCIM source, in the header Authorization.",
                "primary": True,
            }
        ],
        "meta": {
            "resourceType": "ServiceProviderConfig",
            "location": f"{base}/ServiceProviderConfig",
        },
    }
