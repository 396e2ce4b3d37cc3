#!/usr/bin/env python3
"""A page that says which container answered and how often it was asked, counted in Redis.

It speaks the few words of Redis' protocol that it needs itself, so that the image holds nothing but Python.
"""

import http.server
import os
import signal
import socket
import sys

REDIS_HOST = os.environ.get("REDIS_HOST", "redis")
PORT = int(os.environ.get("PORT", "80"))


def count_visit():
    """Adds one to the counter and returns it."""
    with socket.create_connection((REDIS_HOST, 6379), timeout=2) as conn:
        conn.sendall(b"*2\r\n$4\r\nINCR\r\n$4\r\nhits\r\n")
        reply = conn.makefile("rb").readline()
    if not reply.startswith(b":"):
        raise OSError(f"unexpected reply from {REDIS_HOST}: {reply!r}")
    return int(reply[1:])


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            visits = f"seen {count_visit()} times"
        except OSError as error:
            visits = f"cannot reach redis: {error}"
        body = f"Hello from {socket.gethostname()}: {visits}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        # One request a connection, so that every request may reach another container.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        print(f"{self.client_address[0]} {format % args}", flush=True)


def main():
    server = http.server.ThreadingHTTPServer(("", PORT), Page)
    server.daemon_threads = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on port {PORT}", flush=True)
    server.serve_forever()


main()
