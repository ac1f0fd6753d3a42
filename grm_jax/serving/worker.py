"""Runs a judge in a thread of its own: what many clients ask for shares prompts and rows.

All that touches the device happens in this thread, between two chunks of the engine: samples are
submitted and taken back, judgments are rated by the Meta RM, whoever has finished together, and
weights are changed. Every other thread puts what it wants into an inbox, and is called back.
"""

import collections
import dataclasses
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grm_jax.judge import Judge, powers
from grm_jax.judgment.records import Record, Turn
from grm_jax.reward_models.protocol import new_judgment
from grm_jax.reward_models.system import Policy
from grm_jax.sampling.chunks import make_programs
from grm_jax.sampling.engine import Counts, Engine
from grm_jax.sampling.requests import Completion, Request
from grm_jax.sampling.shapes import shape_of

log = logging.getLogger(__name__)
# judgments that the Meta RM reads at once; a CPU takes as long for each of many as for one
RATED_CPU, RATED = 2, 8
NARROWEST_RATED = 128  # tokens; judgments are padded to the powers of two from here


class EngineError(Exception):
    """Says that the device, or the weights, failed: nothing that a client sent."""


@dataclasses.dataclass(eq=False)
class Draw:
    """Asks for the completions of a request.

    done: called by the worker, with them or with an EngineError.
    see: called with (place, tokens) of what there is of a sample so far; None where nobody looks.
    """

    request: Request
    done: Callable[[list[Completion] | EngineError], object]
    see: Callable[[int, np.ndarray], object] | None = None


class Stats(NamedTuple):
    """Counts what the device has to do: rows in use of all, samples that wait for one, tokens."""

    rows_used: int = 0
    rows: int = 0
    waiting: int = 0
    decoded: int = 0
    prefilled: int = 0


class Lane:
    """One set of weights: its judge, its engine, and who waits for it.

    judge: as `grm_jax.load` gives it.
    name: as clients see it.
    digest: of all that its judgments depend on.

    A lane is used by the worker's thread alone, but for these three and `policy`.
    """

    def __init__(self, judge: Judge, name: str):
        self.judge, self.name = judge, name
        self.digest: str = judge.asked()["model"]
        self.since = time.time()
        self.policy: Policy | None = None
        self.engine: Engine | None = None
        self.retired = False  # others are served by new weights
        # tokens of the engine, decoded and prefilled, that are in the stats
        self.counted: tuple[int, int] = (0, 0)
        self.draws: dict[int, Draw] = {}
        self.tickets: dict[Draw, int] = {}
        self.ratings: collections.deque[tuple[dict, Record, Callable]] = collections.deque()
        self.records: collections.deque[tuple[Record, dict, Callable]] = collections.deque()

    def load(self) -> None:
        """Reads the weights and lays out the engine. Takes seconds or minutes."""
        load = self.judge.system.policy
        if load is None:
            self.judge.system.load(0)
            return
        self.policy = load()
        self.engine = self._new_engine()

    def _new_engine(self) -> Engine:
        policy = self.policy
        assert policy is not None
        drawing = dataclasses.replace(policy.sampler_of(0.0), temperatures=True)
        widths, rows = served_widths(policy.buckets), self.judge.rows
        parts = make_programs(drawing).parts
        shape = shape_of(drawing, parts, rows, rows, 1, rows, widths[-1])
        self.counted = (0, 0)
        groups, fold, entries, shared = shape
        return Engine(
            drawing, policy.params, 0, widths, groups, fold, entries, whole=True, shared=shared
        )

    def widths(self) -> tuple[int, ...]:
        """Returns what judgments are padded to for the Meta RM."""
        assert self.policy is not None
        return powers(NARROWEST_RATED, self.policy.longest)

    @property
    def rated(self) -> int:
        """Judgments that the Meta RM reads at once."""
        return RATED_CPU if jax.default_backend() == "cpu" else RATED

    @property
    def busy(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self.draws or self.ratings or self.records)

    def submit(self, draw: Draw) -> None:
        """Puts a request into the engine's queue."""
        try:
            if self.engine is None:  # the last one failed
                self.engine = self._new_engine()
            ticket = self.engine.submit(draw.request)
        except Exception as error:
            log.exception("a request could not be put into the engine's queue")
            draw.done(EngineError(str(error) or type(error).__name__))
            return
        self.draws[ticket], self.tickets[draw] = draw, ticket
        if draw.see is not None:
            self.engine.watch(ticket, draw.see)

    def cancel(self, draw: Draw) -> None:
        """Frees the rows of a request, and forgets it."""
        ticket = self.tickets.pop(draw, None)
        if ticket is not None and self.engine is not None:
            del self.draws[ticket]
            self.engine.cancel(ticket)

    def step(self) -> None:
        """Takes the engine one chunk further, and gives out what is complete."""
        if self.engine is None or not (self.engine.pending or self.engine.running):
            return
        try:
            complete = self.engine.step()
        except Exception as error:
            log.exception("the engine failed; %d requests fail with it", len(self.draws))
            draws = list(self.draws.values())
            self.draws.clear()
            self.tickets.clear()
            self.engine = None  # its memory, before that of the next one, which a request makes
            for draw in draws:
                draw.done(EngineError(str(error) or type(error).__name__))
            return
        for ticket, completions in complete:
            draw = self.draws.pop(ticket)
            del self.tickets[draw]
            draw.done(completions)

    def rate(self) -> None:
        """Puts the Meta RM's logit into the judgments that wait for it."""
        if not self.ratings:
            return
        asked, self.ratings = self.ratings, collections.deque()
        assert self.policy is not None and self.policy.rate is not None
        # records of two clients may have one id
        rows = [row | {"id": str(i)} for i, (row, _, _) in enumerate(asked)]
        records = {str(i): record for i, (_, record, _) in enumerate(asked)}
        try:
            self.policy.rate(rows, records, self.widths(), self.rated)
            results: list[Any] = [row | {"id": asked[int(row["id"])][0]["id"]} for row in rows]
        except Exception as error:
            log.exception("the Meta RM failed on %d judgments", len(asked))
            results = [EngineError(str(error) or type(error).__name__)] * len(asked)
        for (_, _, done), result in zip(asked, results, strict=True):
            done(result)

    def judge_records(self) -> None:
        """Asks a model that has no engine about the records that wait and are asked alike."""
        if not self.records:
            return
        _, how, _ = self.records[0]
        block, others, by_id = [], collections.deque(), {}
        for asked in self.records:
            record, fits = asked[0], asked[1] == how and len(block) < self.judge.rows
            # two clients may call different records by one id
            fits = fits and by_id.setdefault(record.id, record) == record
            (block if fits else others).append(asked)
        self.records = others
        try:
            verdicts: list[Any] = self.judge.block([record for record, _, _ in block], how)
        except Exception as error:
            log.exception("the model failed on %d records", len(block))
            verdicts = [EngineError(str(error) or type(error).__name__)] * len(block)
        for (_, _, done), verdict in zip(block, verdicts, strict=True):
            done(verdict)


def served_widths(buckets: Sequence[int]) -> tuple[int, ...]:
    """Keeps every other width of prompts, the longest among them: each is compiled before ready."""
    return tuple(sorted(buckets)[::-1][::2][::-1])


class Worker:
    """Owns the thread: `put` has it call a function between two chunks.

    stats: of the last chunk. beat: what it is at, and since when, in seconds of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.lanes: list[Lane] = []
        self.stats = Stats()
        self.beat = ("idle", time.monotonic())
        self.thread = threading.Thread(target=self._work, name="grm-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def of(self, lane: Lane, call: Callable[[], object]) -> None:
        """Has the thread call this, which gives a lane something to do or takes it back."""

        def add() -> None:
            if lane not in self.lanes:
                self.lanes.append(lane)
            call()

        self.inbox.put(add)

    def stop(self) -> None:
        """Ends the thread behind the chunk under way; what nobody waits for is not drawn."""
        self.inbox.put(None)

    def put(self, call: Callable[[], object]) -> None:
        """Has the thread call this, soon."""
        self.inbox.put(call)

    def _at(self, what: str) -> None:
        self.beat = (what, time.monotonic())

    def _work(self) -> None:
        while True:
            busy = any(lane.busy for lane in self.lanes)
            if not busy:
                self._at("idle")
            calls = [] if busy else [self.inbox.get()]
            while True:
                try:
                    calls.append(self.inbox.get_nowait())
                except queue.Empty:
                    break
            if None in calls:
                return
            try:
                self._turn([call for call in calls if call is not None])
            except Exception:  # nothing may end this thread: everybody waits for it
                log.exception("a turn of the worker failed")
                time.sleep(0.1)

    def _turn(self, calls: Sequence[Callable[[], object]]) -> None:
        for call in calls:
            try:
                self._at("a call")
                call()
            except Exception:
                log.exception("a call of the worker failed")
        for lane in list(self.lanes):
            self._at("a chunk")
            lane.step()
            self._at("the Meta RM")
            lane.rate()
            self._at("records")
            lane.judge_records()
        self._count()
        # weights that nobody is served by any more leave the memory
        self.lanes = [lane for lane in self.lanes if lane.busy or not lane.retired]

    def _count(self) -> None:
        engines = [lane.engine for lane in self.lanes if lane.engine is not None]
        decoded, prefilled = self.stats.decoded, self.stats.prefilled
        for lane in self.lanes:
            if lane.engine is not None:
                now = (lane.engine.counts.needed_decode, lane.engine.counts.needed_prefill)
                decoded += now[0] - lane.counted[0]
                prefilled += now[1] - lane.counted[1]
                lane.counted = now
        self.stats = Stats(
            sum(s is not None for e in engines for owners in e.owner for s in owners),
            sum(e.parts * math.prod(e.shapes[0]) for e in engines),
            sum(len(p.waiting) for e in engines for p in e.queue.values()),
            decoded,
            prefilled,
        )


def warm(lane: Lane) -> None:
    """Compiles what a lane will run: each width of prompts, few rows and all, the Meta RM.

    To be called where no client is served by the lane yet.
    """
    if lane.judge.system.estimate is not None:
        return  # it runs elsewhere, and may cost money
    if lane.engine is None or lane.policy is None:
        responses = ("a", "b")[: 2 if lane.judge.accepts(2) else 1]
        record = Record("warm", (Turn("user", "a"),), responses)
        lane.judge.block([record], lane.judge.how())
        return
    engine, tokenizer = lane.engine, lane.policy.prompter.tokenizer
    letter, chunk = tokenizer.encode("a")[-1], engine.drawing.chunk
    most = engine.drawing.scfg.max_new_tokens
    for width in engine.buckets:
        ids = [tokenizer.bos_id, *[letter] * (width - 1)]
        engine.submit(Request(ids, "warm", (0,), (min(most, 4 * chunk),), temperature=1.0))
        engine.step()
        engine.step()  # what is left goes on in fewer rows, and in all of them once more waits
        engine.submit(Request(ids, "more", (0,), (1,), temperature=0.0))
        while engine.pending or engine.running:
            engine.step()
    if lane.policy.rate is not None:
        record = Record("warm", (Turn("user", "a"),), ("a", "b"))
        for width in lane.widths():
            row = new_judgment(record, 0, (0, 1), 1.0, (1, 2), text="a", correct=None)
            lane.policy.rate([row], {"warm": record}, (width,), lane.rated)
    engine.counts = Counts()
