"""Runs the server in this process, until it is told to stop."""

import dataclasses
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable

import uvicorn

from grm_jax import signals
from grm_jax.judge import Judge
from grm_jax.serving.app import make_app
from grm_jax.serving.logs import say, set_up
from grm_jax.serving.service import Service
from grm_jax.serving.settings import Serving

BACKLOG = 65_535  # connections that wait to be taken; the kernel's net.core.somaxconn bounds it
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(load: Callable[[], Judge], settings: Serving) -> None:
    """Serves a judge until SIGINT or SIGTERM; requests under way have `grace_s` to end in.

    load: makes the judge, and makes it anew where it is told to reload its weights (SIGHUP).
    Raises OSError where the port is taken.
    """
    listener = listen(settings.host, settings.port)
    set_up()
    # each request has a file of its own, and a shell may give a process 1,024 of these
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = dataclasses.replace(settings, port=listener.getsockname()[1])
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    say("listening", url=f"http://{host}:{settings.port}", pid=os.getpid())
    if settings.host not in LOOPBACK and not settings.api_key:
        say("anybody may ask: there is no key", logging.WARNING, host=settings.host)
    for number in signals.SIGNALS:
        signal.signal(
            number, lambda *_: None
        )  # uvicorn hears them, and raises them again at its end
    server(load, settings).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket; before anything is loaded, so that a port in use is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None


def server(load: Callable[[], Judge], settings: Serving) -> uvicorn.Server:
    """Makes the server of uvicorn; its `run` takes the socket."""
    config = uvicorn.Config(
        make_app(Service(load, settings)),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
        timeout_keep_alive=75,
        server_header=False,
        backlog=BACKLOG,
    )
    return uvicorn.Server(config)
