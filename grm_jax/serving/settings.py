"""Settings of the server: where it listens, what it takes, and how long it waits."""

import dataclasses

from grm_jax.settings import ABOVE_ZERO, NOT_NEGATIVE, POSITIVE, Rule, check, one_of

SCALARS = ("mean", "share", "wins", "rank")  # see `scalars`
VOTES: Rule = ('a positive integer or "auto"', lambda x: x == "auto" or int(x) >= 1)
PORT: Rule = ("a port from 0 to 65535", lambda x: 0 <= x <= 65535)


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a judge is served.

    name: of the model, as clients see it.
    host, port: where it listens; port 0 is a free one. Loopback alone hears no other machine.
    api_key: that requests have to bear; "" for none.
    k, seed, scalar: of requests that do not say. k: "auto", or a number. scalar: how the judgment
        of a list becomes a number for each response (`scalars`).
    queue: samples that are asked for and not yet drawn, at most, of all clients together. Whoever
        would ask for more is told to come back.
    deadline_s: that a request may take, at most. What is not judged by then is a failure by name.
    samples, responses: of one verdict, at most.
    requests: that are under way at once, at most. Whoever asks beyond is told to come back, before
        anything is read.
    body_bytes: of one request, at most.
    slow_s: whatever waits longer than this is said in a line of log.
    grace_s: that requests under way have to end in, once the server is told to stop.
    window_s, members: samples of one prompt that come one at a time are judged together once
        `members` of them are there, or `window_s` after the last one came.
    group_s: that samples wait for the others of a group whose size was announced, at most.
    remembered: replies that are kept for their idempotency keys.
    cache: file of the SQLite cache of verdicts; "" for none.
    """

    name: str = "grm"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    k: int | str = 8
    seed: int = 0
    scalar: str = "mean"
    queue: int = 4096
    deadline_s: float = 300.0
    samples: int = 128
    responses: int = 64
    requests: int = 4096
    body_bytes: int = 4 * 2**20
    slow_s: float = 5.0
    grace_s: float = 30.0
    window_s: float = 0.2
    members: int = 64
    group_s: float = 10.0
    remembered: int = 4096
    cache: str = ""

    def __post_init__(self):
        check(
            self,
            {
                "port": PORT,
                "k": VOTES,
                "queue samples responses requests body_bytes members": POSITIVE,
                "deadline_s slow_s group_s": ABOVE_ZERO,
                "grace_s window_s remembered": NOT_NEGATIVE,
                "scalar": one_of(SCALARS),
            },
            [
                (
                    "k samples",
                    "at most samples = {samples}",
                    lambda k, samples: k == "auto" or int(k) <= samples,
                ),
                (
                    "samples queue",
                    "at most queue = {queue}",
                    lambda samples, queue: samples <= queue,
                ),
            ],
        )
