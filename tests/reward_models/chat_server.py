"""A local server of the chat API that answers as a test wants, and misbehaves on demand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop", **more):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "model": "fake-1.0",
        "usage": {"prompt_tokens": 1000, "completion_tokens": 200},
        **more,
    }


class Server:
    """`answer(payload) -> (status, body, [headers])`; body: an object that becomes JSON, or bytes.
    Keeps requests, and how many were in flight.
    """

    def __init__(self, answer):
        self.answer, self.in_flight, self.most = answer, 0, 0
        self.requests, self.headers, self.times = [], [], []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(payload)
                    server.headers.append(dict(self.headers) | {"path": self.path})
                    server.times.append(time.monotonic())
                    server.in_flight += 1
                    server.most = max(server.most, server.in_flight)
                try:
                    status, body, *headers = server.answer(payload)
                finally:
                    with server.lock:
                        server.in_flight -= 1
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in (headers[0] if headers else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                # the client gave up, as some tests want
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
