"""Every RPC by its REST route, as the contract says: what the matrices are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

import evergreen.v1
from contract.access import ACCESS, PACKAGE, Rule


@dataclass(frozen=True)
class Rpc:
    """An RPC with its row and its REST route; internal ones have none."""

    name: str
    rule: Rule
    method: str
    path: str

    def url(self, **values: str) -> str:
        """The path with its parameters filled in."""
        url = self.path
        for key, value in values.items():
            url = url.replace("{" + key + "}", value).replace("{" + key + "=**}", value)
        return url


@cache
def rpcs() -> list[Rpc]:
    """All RPCs of the access table."""
    path = Path(next(iter(evergreen.v1.__path__))) / "descriptors.binpb"
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    found = []
    for file in files.file:
        if file.package != PACKAGE:
            continue
        for service in file.service:
            for method in service.method:
                name = f"/{PACKAGE}.{service.name}/{method.name}"
                http = method.options.Extensions[annotations_pb2.http]
                verb = http.WhichOneof("pattern") or ""
                found.append(
                    Rpc(name, ACCESS[name], verb.upper(), getattr(http, verb) if verb else "")
                )
    return found
