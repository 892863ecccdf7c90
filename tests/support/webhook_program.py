"""A receiver of webhooks that can be killed: what it has answered is in its file.

`python -m tests.support.webhook_program PORT FILE`
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def main(port: int, path: Path) -> None:
    """Serves until it is killed."""
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            lines = [
                f'id="{e["id"]}" tenant="{e["tenantid"]}" sequence="{e.get("auditsequence", 0)}"\n'
                for e in (body if isinstance(body, list) else [body])
            ]
            os.write(file, "".join(lines).encode())
            self.send_response(204)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer.allow_reuse_address = True
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
