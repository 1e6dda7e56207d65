"""A proxy in front of an S3 server that fails as object storage does, at chosen rates and by a
seed.

500        an InternalError instead of an answer
503        a SlowDown instead of an answer
delay      the answer is late
cut_get    the connection is reset in the middle of the answer's body
cut_put    the connection is reset in the middle of the request's body, which is not passed on
lost       the request is carried out, and its answer lost

Beside these, objects may be kept from deletion as rights or locks keep them: named one by one in
the answer to a deletion of many, which is no error.
"""

import collections
import http.client
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

KINDS = ("500", "503", "delay", "cut_get", "cut_put", "lost")
_CODES = {"500": "InternalError", "503": "SlowDown"}


class FaultyS3:
    """A context manager: a server at `url` that passes requests on to `upstream`.

    Args:
        rates: {kind of fault: its probability per request}; may be changed at any time.

    Attributes:
        closed: objects whose key has this in it cannot be written; empty: all can.
        kept: objects whose key has this in it cannot be deleted; empty: all can.
        faults: how often each kind was injected.
        requests: how often each method arrived.
        paths: how often each method arrived for each path.
    """

    def __init__(self, upstream: str, rates: dict[str, float], seed: int = 0) -> None:
        self.upstream, self.rates = urllib.parse.urlsplit(upstream).netloc, rates
        self.delay_s = 0.3
        self.kept = self.closed = ""
        self.faults: collections.Counter[str] = collections.Counter()
        self.requests: collections.Counter[str] = collections.Counter()
        self.paths: collections.Counter[tuple[str, str]] = collections.Counter()
        self._random, self._guard = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(_Handler):
            faulty = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def draw(self, method: str, path: str) -> str:
        """The fault of the next request; empty for none."""
        with self._guard:
            self.requests[method] += 1
            self.paths[method, path.partition("?")[0]] += 1
            place = self._random.random()
            for kind, rate in self.rates.items():
                place -= rate
                if place < 0:
                    self.faults[kind] += 1
                    return kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyS3

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        fault = self.faulty.draw(self.command, self.path)
        if fault == "cut_put":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._reset()
            return
        body = self._body()
        if fault in _CODES:
            text = f"<Error><Code>{_CODES[fault]}</Code><Message>injected</Message></Error>"
            self._answer(int(fault), {"Content-Type": "application/xml"}, text.encode())
            return
        if fault == "delay":
            time.sleep(self.faulty.delay_s)
        if self.faulty.closed and self.command == "PUT" and self.faulty.closed in self.path:
            text = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self._answer(403, {"Content-Type": "application/xml"}, text.encode())
            return
        if self.faulty.kept and self._is_kept(body):
            return
        status, headers, data = self._pass_on(body)
        if fault == "lost" or (fault == "cut_get" and len(data) < 2):
            self._reset()
        elif fault == "cut_get":
            self._answer(status, headers, data, cut=len(data) // 2)
        else:
            self._answer(status, headers, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _is_kept(self, body: bytes) -> bool:
        """Whether this deletes what is to be kept, and has been answered."""
        kept, why = self.faulty.kept, "<Code>AccessDenied</Code><Message>Access Denied</Message>"
        found = {"Content-Type": "application/xml"}
        if self.command == "DELETE" and kept in self.path:
            self._answer(403, found, f"<Error>{why}</Error>".encode())
            return True
        keys = (
            re.findall(r"<Key>(.*?)</Key>", body.decode()) if self.path.endswith("?delete") else []
        )
        if not any(kept in key for key in keys):
            return False
        bucket, self.command = self.path.partition("?")[0].rstrip("/"), "DELETE"
        for key in keys:
            if kept not in key:
                self.path = f"{bucket}/{urllib.parse.quote(key)}"
                self._pass_on(b"")
        errors = "".join(f"<Error><Key>{key}</Key>{why}</Error>" for key in keys if kept in key)
        self._answer(200, found, f"<DeleteResult>{errors}</DeleteResult>".encode())
        return True

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.faulty.upstream, timeout=30)
        hop = ("host", "connection", "transfer-encoding", "content-length", "expect")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in hop}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            time.sleep(0.02)
            self._reset()

    def _reset(self) -> None:
        """Ends the connection with a reset instead of an orderly close."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()
