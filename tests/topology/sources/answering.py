"""A small HTTP server that answers as an API would, for sources that ask one."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def answering(answers: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve `answers` by path, or path with its query sorted; yield the address and what was asked.

    A number is an HTTP status. What was asked is (path, Authorization header).
    """
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            path, _, query = self.path.partition("?")
            whole = f"{path}?{'&'.join(sorted(query.split('&')))}"
            answer = answers.get(whole, answers.get(path, 404))
            status = answer if isinstance(answer, int) else 200
            body = json.dumps({} if isinstance(answer, int) else answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
