"""Gives the command `grm serve` its flags, and reads them. Imports nothing of the server."""

import argparse
import os

from grm_jax.serving.settings import SCALARS, Serving

ABOUT = """\
Serves a judge over HTTP: POST /v1/judge, and the doors of OpenAI, OpenRLHF, vLLM and NeMo Gym
(docs/serving.md). It listens on this machine alone, unless --host says otherwise. The log is JSON
lines on stderr. SIGHUP reads the weights anew, and no request is lost; SIGTERM or Ctrl-C answers
what is under way, and ends.
"""
# settings that are flags as they are
FIELDS = {
    "deadline_s": "longest that a request may take, in seconds",
    "queue": "samples that may be asked for at once, of all clients",
    "samples": "samples of one verdict, at most",
    "responses": "responses of one verdict, at most",
    "requests": "requests under way at once, at most",
    "body_bytes": "bytes of one request, at most",
    "slow_s": "what waits longer is said in the log, in seconds",
    "grace_s": "that requests have to end in at SIGTERM, in seconds",
    "scalar": f"number of a response in a list: {', '.join(SCALARS)}",
    "window_s": "samples of one prompt are collected for so long, in seconds",
    "members": "samples that are judged together, at most",
    "group_s": "longest that samples wait for an announced group, in seconds",
    "remembered": "replies that are kept for idempotency keys",
    "cache": "SQLite file of verdicts",
}


def add(command: argparse.ArgumentParser) -> None:
    """Adds the flags to a parser that has those of the model."""
    command.add_argument(
        "--name", default="", help="of the model, for clients (default: the last part of --model)"
    )
    command.add_argument("--host", default=Serving.host, help="to listen on (default: %(default)s)")
    command.add_argument(
        "--port", type=int, default=Serving.port, help="0 is a free one (default: %(default)s)"
    )
    command.add_argument(
        "--api-key-env",
        default="GRM_API_KEY",
        metavar="NAME",
        help="variable with the key that requests have to bear (default: GRM_API_KEY)",
    )
    for field, help in FIELDS.items():
        default = getattr(Serving, field)
        command.add_argument(
            f"--{field.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{help} (default: {default or 'none'})",
        )


def settings_of(args: argparse.Namespace) -> Serving:
    """Returns the settings that the flags say. Raises ValueError, naming what cannot be."""
    return Serving(
        name=args.name or args.model.rstrip("/").rpartition("/")[2],
        host=args.host,
        port=args.port,
        api_key=os.environ.get(args.api_key_env, ""),
        k=args.k,
        seed=args.seed,
        **{field: getattr(args, field) for field in FIELDS},
    )
