"""What the doors of the server open on: verdicts and texts, with deadlines, limits and reasons.

Everything here runs in the event loop, but for text (templates, tokens, parsing), which has threads
of its own, and the device, which has the worker's. A verdict is drawn as `grm_jax.judge` draws it,
sample by sample: the same weights, seed and texts give the same verdict, token for token.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from grm_jax.judge import Judge
from grm_jax.judgment.anytime import kept_so_far
from grm_jax.judgment.given import as_record
from grm_jax.judgment.records import Record
from grm_jax.reward_models.grm import Ask, drawn_judgment
from grm_jax.reward_models.protocol import TOO_LONG, new_judgment, shown_order
from grm_jax.sampling.requests import Completion, Request
from grm_jax.serving.cache import Cache, key_of
from grm_jax.serving.logs import request_id, say
from grm_jax.serving.settings import Serving
from grm_jax.serving.worker import Draw, EngineError, Lane, Worker, warm
from grm_jax.verdict import Verdict, depends_on, verdict_of

DEADLINE = "deadline"  # the failure of a judgment that was not there in time
WRONG = "invalid_request_error"  # what is wrong with a request, in OpenAI's words
TEXT_THREADS = 2
LONGEST_WAIT_S = 60  # that a client is told to stay away


class Refused(Exception):
    """Says why a request is not taken, and with which status.

    retry_after: seconds until it may be sent again; None where that will not help.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.retry_after = retry_after


class Judged(NamedTuple):
    """A verdict, the lane whose weights made it, and tokens: of prompts and of completions.

    cached: whether it was drawn for an earlier request.
    """

    verdict: Verdict
    lane: Lane
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False


class Waiting:
    """What a request waits for, for the line of log that says so."""

    def __init__(self, what: str, request: str | None):
        self.what, self.request = what, request
        self.since = time.monotonic()
        self.said = 0.0


class Service:
    """Serves one judge. `start` and `stop` belong to the event loop that asks it.

    state: "loading", "ready", "stopping", or "failed: why".
    """

    def __init__(self, load: Callable[[], Judge], settings: Serving):
        self._load, self.settings = load, settings
        self.worker = Worker()
        self.lane: Lane | None = None
        self.state = "loading"
        self.asked = 0  # samples that requests under way have asked for
        self.drawn = 0  # samples that have come
        self.held = 0  # samples that wait for their groups
        self.replayed = 0  # requests that were answered by their idempotency key
        self.failures: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.cache = Cache(settings.cache) if settings.cache else None
        self.rate = 0.0  # samples a second, lately
        self.waits: set[Waiting] = set()
        self.text = concurrent.futures.ThreadPoolExecutor(TEXT_THREADS, "grm-text")
        self.tasks: set[asyncio.Task] = set()
        self.reloading = asyncio.Lock()

    # its life

    def start(self) -> None:
        """Starts the worker, which loads and warms the judge, and the watch over what waits."""
        self.loop = asyncio.get_running_loop()
        self.worker.start()
        self.spawn(self._become_ready())
        self.spawn(self._watch())

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Has a coroutine run beside the requests, until the service stops."""
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _become_ready(self) -> None:
        began = time.monotonic()
        try:
            lane = await self._in_worker(self._new_lane)
        except Exception as error:
            self.state = f"failed: {error}"
            logging.getLogger(__name__).exception("the judge could not be loaded")
            return
        self.lane, self.state = lane, "ready"
        say(
            "ready",
            model=lane.name,
            weights=lane.digest,
            kind=lane.judge.system.kind,
            seconds=round(time.monotonic() - began, 2),
        )

    def _new_lane(self) -> Lane:
        lane = Lane(self._load(), self.settings.name)
        lane.load()
        warm(lane)
        self.worker.lanes.append(lane)
        return lane

    async def stop(self) -> None:
        """Ends the worker. Nothing is under way any more, or nobody waits for it."""
        self.state = "stopping"
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.worker.stop()
        await asyncio.to_thread(self.worker.thread.join, 10)
        self.text.shutdown(wait=False, cancel_futures=True)
        if self.cache is not None:
            self.cache.close()

    async def reload(self) -> Lane:
        """Loads the judge anew and serves it from then on; what is under way ends as it began.

        Raises Refused where it cannot be loaded: the old one goes on.
        """
        # whoever asked may leave: what is loaded then is served, or not kept
        return await asyncio.shield(self.spawn(self._reload()))

    async def _reload(self) -> Lane:
        async with self.reloading:
            return await self._replace()

    async def _replace(self) -> Lane:
        began, old = time.monotonic(), self._ready()
        try:
            # beside the worker, which serves meanwhile
            lane = await asyncio.to_thread(self._loaded)
            await self._in_worker(lambda: (warm(lane), self.worker.lanes.append(lane)))
        except Exception as error:
            logging.getLogger(__name__).exception("the new weights could not be loaded")
            raise Refused(409, "weights", f"the weights stay as they are: {error}") from error
        self.lane = lane
        seconds = round(time.monotonic() - began, 2)
        say("weights", weights=lane.digest, before=old.digest, seconds=seconds)
        old.retired = True
        self.worker.put(lambda: None)  # it looks who is retired behind each call
        return lane

    def _loaded(self) -> Lane:
        lane = Lane(self._load(), self.settings.name)
        lane.load()
        return lane

    async def _in_worker(self, call: Callable[[], Any]) -> Any:
        future = self.loop.create_future()

        def run() -> None:
            try:
                result, error = call(), None
            except BaseException as caught:
                result, error = None, caught
            self._tell(future, result, error)

        self.worker.put(run)
        return await future

    def _tell(self, future: asyncio.Future, result: Any, error: BaseException | None) -> None:
        """Gives a future its result from another thread; nobody may wait for it any more."""

        def settle() -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(settle)

    async def _watch(self) -> None:
        """Says in a line of log what waits for long, again whenever it has waited twice as long."""
        before, then = self.drawn, time.monotonic()
        while True:
            slow = self.settings.slow_s
            await asyncio.sleep(min(1.0, slow / 4))
            now = time.monotonic()
            rate = (self.drawn - before) / (now - then)
            if self.asked or self.drawn > before:  # idle seconds say nothing of how fast it is
                self.rate = 0.8 * self.rate + 0.2 * rate
            before, then = self.drawn, now
            stats, (at, since) = self.worker.stats, self.worker.beat
            for wait in list(self.waits):
                waited = now - wait.since
                if waited < max(slow, 2 * wait.said):
                    continue
                wait.said = waited
                say(
                    "waits",
                    logging.WARNING,
                    request=wait.request,
                    what=wait.what,
                    seconds=round(waited, 1),
                    samples_waiting=stats.waiting,
                    rows_used=stats.rows_used,
                    rows=stats.rows,
                    worker=at,
                    worker_seconds=round(now - since, 1),
                )

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[Waiting]:
        """Says while something is waited for; after `slow_s` there is a line of log."""
        wait = Waiting(what, request_id.get())
        self.waits.add(wait)
        try:
            yield wait
        finally:
            self.waits.discard(wait)

    # what is taken

    def _ready(self) -> Lane:
        if self.lane is None or self.state != "ready":
            raise Refused(503, "not_ready", f"the server is not ready: {self.state}", 2)
        return self.lane

    def named(self, model: str | None) -> Lane:
        """Returns the lane that serves a model. Raises Refused for a name that is not served."""
        lane = self._ready()
        if model not in (None, "", lane.name, lane.digest):
            raise Refused(404, "model_not_found", f"this server has the model {lane.name!r} alone")
        return lane

    @contextlib.contextmanager
    def admitted(self, samples: int) -> Iterator[None]:
        """Takes a request of so many samples, as long as there is room for them.

        Raises Refused: 429 where the queue is full, 503 where the server is not ready.
        """
        self._ready()
        if self.asked + samples > self.settings.queue:
            seconds = self.asked / self.rate if self.rate > 0 else 1.0
            raise Refused(
                429,
                "queue_full",
                f"{self.asked} samples are asked for, and {samples} more would be over the queue's "
                f"{self.settings.queue}",
                int(min(LONGEST_WAIT_S, max(1, seconds))),
            )
        self.asked += samples
        try:
            yield
        finally:
            self.asked -= samples

    def until(self, deadline_s: float | None) -> float:
        """Returns the time, by `time.monotonic`, at which a request has to be answered."""
        longest = self.settings.deadline_s
        return time.monotonic() + min(longest, longest if deadline_s is None else deadline_s)

    # verdicts

    def how(
        self,
        k: int | str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        k_meta: int | None = None,
    ) -> dict[str, Any]:
        """Says how a record is judged, of what a request says and the settings.

        Raises Refused for what cannot be, and for more samples than a request may ask for.
        """
        settings = self.settings
        judge = self._ready().judge
        try:
            how = judge.how(
                settings.k if k is None else k,
                settings.seed if seed is None else seed,
                temperature,
                k_meta,
            )
        except ValueError as error:
            raise Refused(422, WRONG, str(error)) from None
        if len(how["samples"]) > settings.samples:
            problem = f"k: expected at most {settings.samples}, got {len(how['samples'])}"
            raise Refused(422, WRONG, problem)
        return how

    async def judge(
        self, record: Record, how: dict[str, Any], until: float, admitted: bool = False
    ) -> Judged:
        """Judges a record.

        how: of `Judge.how`. until: of `until`. Judgments that are not there by then have failed,
        and the verdict is that of the others. admitted: whether whoever asks has taken room for
        them (`admitted`).

        Raises Refused for what this model cannot judge, and where too much is asked for; and
        EngineError where the device failed.
        """
        n, samples = len(record.responses), len(how["samples"])
        if n > self.settings.responses:
            most = self.settings.responses
            raise Refused(
                422, "too_many_responses", f"responses: {n} responses; expected at most {most}"
            )
        lane = self._ready()
        if not lane.judge.accepts(n):
            kind = lane.judge.system.kind
            raise Refused(422, "responses", f"a {kind} cannot judge {n} response")
        try:
            lane.judge.checked(record, "body")
        except ValueError as error:
            raise Refused(422, WRONG, str(error)) from None
        key, found = "", None
        if self.cache is not None:
            key = key_of(record, depends_on(lane.digest, how))
            found = await self.cache.get(key)
        if found is not None:
            return Judged(found[0], lane, found[1], found[2], cached=True)
        judge = self._by_records if lane.policy is None else self._by_samples
        room = contextlib.nullcontext() if admitted else self.admitted(samples)
        with room, self.waiting(f"{samples} judgments of {n} responses"):
            judged = await judge(lane, record, how, until)
        for judgment in judged.verdict.judgments:
            if judgment.failure is not None:
                self.failures[judgment.failure] = self.failures.get(judgment.failure, 0) + 1
        whole = all(judgment.failure != DEADLINE for judgment in judged.verdict.judgments)
        if self.cache is not None and whole:
            tokens = (judged.prompt_tokens, judged.completion_tokens)
            await self.cache.put(key, judged.verdict, *tokens)
        return judged

    async def _by_samples(self, lane: Lane, record: Record, how: dict, until: float) -> Judged:
        rounds = lane.judge.rounds(
            record, *(how[name] for name in ("samples", "seed", "k_meta", "until", "step"))
        )
        wanted, rows, verdict = next(rounds), [], None
        while verdict is None:
            drawn = await self._round(lane, record, how, wanted, until)
            rows += drawn
            late = sum(row["failure"] == DEADLINE for row in drawn)
            if late:
                k, k_meta = len(how["samples"]), how["k_meta"]
                # the Meta RM keeps the same share of those that came
                kept = k_meta and max(1, kept_so_far(len(rows) - late, k, k_meta))
                verdict = verdict_of(record, rows, kept, how["seed"])
                break
            try:
                wanted = rounds.send(drawn)
            except StopIteration as end:
                verdict = end.value
        prompt_tokens = sum(row["prompt_tokens"] or 0 for row in rows)
        return Judged(verdict, lane, prompt_tokens, sum(row["tokens"] for row in rows))

    async def _round(
        self, lane: Lane, record: Record, how: dict, samples: Sequence[int], until: float
    ) -> list[dict]:
        """Draws samples; those that are not there in time have failed."""
        temperature = how["temperature"]
        assert lane.policy is not None
        hinted = lane.policy.hinted

        def failed(ask: Ask, failure: str) -> dict:
            return new_judgment(
                record, ask.samples[0], ask.order, temperature, None, failure=failure,
                hinted=hinted, correct=None,
            )  # fmt: skip

        asks = [
            Ask(record, shown_order(how["seed"], record, i, False), (i,), record.id, hinted)
            for i in samples
        ]
        prompts = await self.in_text_thread(functools.partial(_prompts, lane, asks))
        tasks = {
            asyncio.create_task(self._sample(lane, ask, ids, how)): ask
            for ask, ids in zip(asks, prompts, strict=True)
            if ids is not None
        }
        try:
            left = max(0.0, until - time.monotonic())
            await asyncio.wait(tasks, timeout=left) if tasks else None
        finally:
            for task in tasks:
                task.cancel()  # those that are done do not mind
        rows = {
            ask.samples[0]: failed(ask, TOO_LONG)
            for ask, ids in zip(asks, prompts, strict=True)
            if ids is None
        }
        there = {task for task in tasks if task.done() and not task.cancelled()}
        for error in [task.exception() for task in there]:
            if error is not None:
                raise error
        for task, ask in tasks.items():
            rows[ask.samples[0]] = task.result() if task in there else failed(ask, DEADLINE)
        self.drawn += len(samples)
        return [rows[i] for i in samples]

    async def _sample(self, lane: Lane, ask: Ask, ids: list[int], how: dict) -> dict:
        policy, temperature = lane.policy, how["temperature"]
        assert policy is not None
        request = Request(ids, ask.key, ask.samples, seed=how["seed"], temperature=temperature)
        (completion,) = await self.draw(lane, request)
        row = await self.in_text_thread(
            functools.partial(
                drawn_judgment,
                policy.prompter.tokenizer,
                ask,
                completion,
                len(ids),
                temperature,
                policy.prompter.answer,
                policy.prompter.parsing,
            )
        )
        if policy.rate is None or temperature == 0 or row["failure"] is not None:
            return row
        future = self.loop.create_future()
        done = functools.partial(self._settle, future)
        self.worker.of(lane, lambda: lane.ratings.append((row, ask.record, done)))
        return await future

    async def _by_records(self, lane: Lane, record: Record, how: dict, until: float) -> Judged:
        """Asks a model that is not drawn from sample by sample."""
        future = self.loop.create_future()
        done = functools.partial(self._settle, future)
        asked = (record, how, done)
        self.worker.of(lane, lambda: lane.records.append(asked))
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                verdict = await future
        except TimeoutError:
            rows = [
                new_judgment(record, i, range(len(record.responses)), how["temperature"], None,
                             failure=DEADLINE)
                for i in how["samples"]
            ]  # fmt: skip
            verdict = verdict_of(record, rows, how["k_meta"], how["seed"])
        finally:
            if not future.done() or future.cancelled():
                self.worker.put(lambda: asked in lane.records and lane.records.remove(asked))
        self.drawn += len(how["samples"])
        return Judged(verdict, lane, 0, sum(judgment.tokens for judgment in verdict.judgments))

    def _settle(self, future: asyncio.Future, result: Any) -> None:
        error = result if isinstance(result, EngineError) else None
        self._tell(future, result, error)

    # texts

    async def draw(
        self, lane: Lane, request: Request, see: Callable[[int, np.ndarray], object] | None = None
    ) -> list[Completion]:
        """Draws the completions of a request. Who cancels this frees its rows.

        see: called in the worker's thread. Raises EngineError.
        """
        future = self.loop.create_future()
        draw = Draw(request, functools.partial(self._settle, future), see)
        self.worker.of(lane, lambda: lane.submit(draw))
        try:
            return await future
        finally:
            if future.cancelled() or not future.done():
                self.worker.of(lane, lambda: lane.cancel(draw))

    async def in_text_thread(self, call: Callable[[], Any]) -> Any:
        """Calls what works on text, beside the event loop."""
        return await self.loop.run_in_executor(self.text, call)


def record_of(fields: dict[str, Any]) -> Record:
    """Returns the record of these fields. Raises Refused, naming the field, where there is none."""
    try:
        return as_record(fields, "body")
    except ValueError as error:
        raise Refused(422, WRONG, str(error)) from None


def _prompts(lane: Lane, asks: Sequence[Ask]) -> list[list[int] | None]:
    """Returns the prompts of the asks; None for those that are too long to be read."""
    policy = lane.policy
    assert policy is not None
    widest, prompts, longest = max(policy.buckets), [], 0
    for ask in asks:
        if longest > 2 * widest:
            prompts.append(None)  # another order makes no such difference
            continue
        ids = policy.prompter.ids(ask.record, ask.order, ask.hinted)
        prompts.append(ids if len(ids) <= widest else None)
        longest = len(ids)
    return prompts
