"""The public API as the gateway sees it: the access table joined with the descriptors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2

from contract.access import ACCESS, PACKAGE, Audience, Rule


@dataclass(frozen=True, slots=True)
class Method:
    """One public RPC."""

    path: str
    """`/evergreen.v1.<Service>/<Method>`."""
    service: str
    rule: Rule
    verb: str
    """The HTTP method of its JSON form."""
    template: str
    """The HTTP path of its JSON form, with `{field}` for variable segments."""

    @property
    def is_idempotent(self) -> bool:
        """Whether doing it twice is the same as doing it once.

        Reads are, and so are the calls of agents: an agent repeats each of them after any
        failure anyway.
        """
        return self.rule.agent_form or not self.rule.writes


def public_methods(descriptors: bytes) -> list[Method]:
    """Every RPC that the gateway serves, those of agents first.

    Raises:
        ValueError: the access table and the descriptors do not belong together.
    """
    found = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
        if file.package != PACKAGE:
            continue
        for service in file.service:
            for method in service.method:
                name = f"{PACKAGE}.{service.name}"
                found[f"/{name}/{method.name}"] = name, method
    if found.keys() != ACCESS.keys():
        raise ValueError(
            "the access table and the descriptors differ in "
            + ", ".join(sorted(found.keys() ^ ACCESS.keys()))
        )
    methods = [
        _method(path, service, found_method)
        for path, (service, found_method) in found.items()
        if ACCESS[path].audience is not Audience.INTERNAL
    ]
    return sorted(methods, key=lambda m: (not m.rule.agent_form, m.path))


def load(descriptors: Path) -> list[Method]:
    """`public_methods` of a descriptor file."""
    return public_methods(descriptors.read_bytes())


def _method(path: str, service: str, method: descriptor_pb2.MethodDescriptorProto) -> Method:
    rule: http_pb2.HttpRule = method.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom" or rule.additional_bindings:
        raise ValueError(f"{path} needs exactly one HTTP form")
    return Method(
        path=path,
        service=service,
        rule=ACCESS[path],
        verb=verb.upper(),
        template=str(getattr(rule, verb)),
    )


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A path, or a family of paths, of transcoded JSON calls."""

    template: str
    verbs: tuple[str, ...]
    """The HTTP methods that it takes."""

    @property
    def regex(self) -> str | None:
        """What its paths look like; `None` when it is only one."""
        return _regex(self.template) if "{" in self.template else None


def json_paths(methods: Iterable[Method]) -> list[JsonPath]:
    """The paths of transcoded calls, single ones first.

    A single path takes the methods of the families that it belongs to as well.
    """
    forms = [(m.template, _regex(m.template), m.verb) for m in methods if not m.rule.agent_form]
    templates = sorted({template for template, _, _ in forms}, key=lambda t: ("{" in t, t))
    return [
        JsonPath(
            template,
            tuple(sorted({verb for _, regex, verb in forms if re.fullmatch(regex, template)})),
        )
        for template in templates
    ]


def _regex(template: str) -> str:
    several = re.sub(r"\\\{\w+=\\\*\\\*\\\}", ".+", re.escape(template))
    return re.sub(r"\\\{[^/]*?\\\}", "[^/]+", several)
