"""Generates all that is derived from `protos/` and `libs/contract` (`make gen`); byte-stable.

Writes the Python modules and stubs under `libs/evergreen/v1/`, the descriptor set that the
gateway's transcoder and the gRPC reflection use, the OpenAPI document, the AsyncAPI document of
the events, and of the chart its README, its lists of contexts and its alerts.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import google.rpc
from grpc_tools import protoc

from tools import chart_contexts, chart_readme
from tools.chart_readme import CHART

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
LIBS = ROOT / "libs"
GOOGLEAPIS = Path(next(iter(google.rpc.__path__))).parent.parent
DESCRIPTORS = LIBS / "evergreen" / "v1" / "descriptors.binpb"


def _protoc(*arguments: str) -> None:
    # protoc finds its plugins beside the interpreter, whether the environment is active or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    includes = [f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}", f"-I{GOOGLEAPIS}"]
    if protoc.main(["protoc", *includes, *arguments]) != 0:
        sys.exit("protoc failed; its message is above")


def main() -> None:
    """Regenerate all derived files in place."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.glob("evergreen/v1/*.proto"))
    for old in (LIBS / "evergreen" / "v1").glob("*_pb2*"):
        old.unlink()
    _protoc(
        f"--python_out={LIBS}",
        f"--mypy_out={LIBS}",
        f"--grpc_python_out={LIBS}",
        f"--mypy_grpc_out={LIBS}",
        *sources,
    )
    for without_service in ("person", "rules"):
        for stub in (LIBS / "evergreen" / "v1").glob(f"{without_service}_pb2_grpc.py*"):
            stub.unlink()
    _protoc(
        f"--descriptor_set_out={DESCRIPTORS}",
        "--include_imports",
        "--include_source_info",
        *sources,
        # The transcoder needs these to render the details of an error.
        "google/rpc/error_details.proto",
    )
    openapi = importlib.import_module("tools.openapi")  # reads what was just made
    asyncapi = importlib.import_module("tools.asyncapi")
    openapi.write()
    asyncapi.write()
    chart_readme.write()
    chart_contexts.write()
    # A chart cannot reach out of its directory.
    shutil.copyfile(ROOT / "deploy/prometheus/rules/evergreen.yaml", CHART / "files/alerts.yaml")


if __name__ == "__main__":
    main()
