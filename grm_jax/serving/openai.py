"""Opens the doors that OpenAI's clients know: chat completions, completions, models.

The judge's own engine writes the texts, beside the judgments, with the temperature and the seed of
each request. What the engine does not do (tools, another top_p, penalties, ...) is refused, and not
left out in silence.
"""

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from grm_jax.json_files import cut
from grm_jax.judge import checked_temperature
from grm_jax.sampling.requests import Completion, Request
from grm_jax.serving.gate import error_body
from grm_jax.serving.replies import usage_of
from grm_jax.serving.service import DEADLINE, WRONG, Refused, Service
from grm_jax.serving.texts import StrictRoute, turns_of
from grm_jax.serving.worker import EngineError, Lane

MOST_STOPS = 16
# fields that would change the text, with what they may be
FIXED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "top_logprobs": (None, 0),
    "min_p": (None, 0),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
    "min_tokens": (None, 0),
    "length_penalty": (None, 1),
    "use_beam_search": (None, False),
    "ignore_eos": (None, False),
    "skip_special_tokens": (None, True),
    "include_stop_str_in_output": (None, False),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "chat_template_kwargs": (None, {}),
}
# fields that change no text
HARMLESS = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("parallel_tool_calls", "priority", "request_id", "cache_salt"),
)
Tokens = Annotated[int, Field(ge=1)]


class TextBody(BaseModel):
    """What both doors take."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    n: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: Tokens | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class ChatBody(TextBody):
    """What /v1/chat/completions takes."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None


class CompletionBody(TextBody):
    """What /v1/completions takes."""

    prompt: str | list[str]
    logprobs: int | None = None


class Writing(NamedTuple):
    """What is to be written: prompts, samples of each, how, and by which weights."""

    lane: Lane
    prompts: list[list[int]]
    n: int
    temperature: float
    seed: int
    limit: int
    stops: tuple[str, ...]
    until: float


class Piece(NamedTuple):
    """A part of a choice's text. finish: why it ends there; completion: all of it, at its end."""

    choice: int
    text: str
    finish: str | None = None
    completion: Completion | None = None


def make_router(service: Service) -> APIRouter:
    """Makes OpenAI's doors, on a service."""
    router = APIRouter(route_class=StrictRoute)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        lane = service.named(None)
        longest = None if lane.policy is None else lane.policy.longest
        about = {"id": lane.name, "object": "model", "created": int(lane.since)}
        about |= {"owned_by": "grm_jax", "root": lane.digest, "max_model_len": longest}
        return {"object": "list", "data": [about]}

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> Response:
        lane = writer(service, body)
        turns = [(turn["role"], turn["content"]) for turn in turns_of(body.messages)]
        if not turns or turns[-1][0] != "user":
            raise Refused(422, WRONG, "messages: expected the user's turn as the last")
        assert lane.policy is not None
        write = lane.policy.prompter.tokenizer.chat_to_answer
        try:
            ids = await service.in_text_thread(lambda: write(turns))
        except ValueError as error:  # of the chat template, which may know no system's turn
            raise Refused(422, WRONG, f"messages: {error}") from None
        limit = body.max_completion_tokens or body.max_tokens
        writing = plan(service, lane, body, [ids], limit)
        return await answer(service, body, writing, ChatReply(lane, bool(body.logprobs)))

    @router.post("/v1/completions")
    async def completions(body: CompletionBody) -> Response:
        lane = writer(service, body)
        if body.logprobs is not None and not 0 <= body.logprobs <= 1:
            problem = "logprobs: expected 0 or 1: those of the tokens drawn, and of no others"
            raise Refused(422, WRONG, problem)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if not texts:
            raise Refused(422, WRONG, "prompt: expected one text or more")
        if len(texts) * body.n > service.settings.samples:
            most = service.settings.samples
            raise Refused(422, WRONG, f"prompt: expected at most {most} prompts times n")
        assert lane.policy is not None
        tokenizer = lane.policy.prompter.tokenizer
        # one that has no BOS takes EOS for it, which is no beginning
        front = [] if tokenizer.bos_id == tokenizer.eos_id else [tokenizer.bos_id]
        encode = lambda: [[*front, *tokenizer.encode(text)] for text in texts]  # noqa: E731
        writing = plan(service, lane, body, await service.in_text_thread(encode), body.max_tokens)
        return await answer(service, body, writing, TextReply(lane, body.logprobs is not None))

    return router


def writer(service: Service, body: TextBody) -> Lane:
    """Returns the lane that writes, once all that it cannot do has been refused."""
    lane = service.named(body.model)
    if lane.policy is None:
        kind = lane.judge.system.kind
        raise Refused(404, "model_not_found", f"a {kind} writes no texts; it judges at /v1/judge")
    for field, value in (body.model_extra or {}).items():
        if field not in HARMLESS and value not in FIXED.get(field, (None,)):
            problem = f"{cut(field, 40)}: this server has none; leave it out"
            raise Refused(422, WRONG, problem)
    settings = lane.policy.sampler_of(0.0).scfg
    for field, own in (("top_p", settings.top_p), ("top_k", settings.top_k)):
        given = getattr(body, field)
        off = field == "top_k" and own == 0 and given == -1
        if given not in (None, own) and not off:
            raise Refused(422, WRONG, f"{field}: it is {own} for all of this server; leave it out")
    if body.n > service.settings.samples:
        raise Refused(422, WRONG, f"n: expected at most {service.settings.samples}")
    return lane


def plan(
    service: Service, lane: Lane, body: TextBody, prompts: list[list[int]], limit: int | None
) -> Writing:
    """Checks lengths and stops. Raises Refused for a prompt that the model cannot read."""
    assert lane.policy is not None
    widest, most = max(lane.policy.buckets), lane.policy.sampler_of(0.0).scfg.max_new_tokens
    try:
        temperature = checked_temperature(1.0 if body.temperature is None else body.temperature)
    except ValueError as error:
        raise Refused(422, WRONG, str(error)) from None
    longest = max(map(len, prompts))
    if longest > widest:
        problem = f"a prompt of {longest} tokens; this server reads at most {widest}"
        raise Refused(400, "context_length_exceeded", problem)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MOST_STOPS or not all(stops):
        raise Refused(422, WRONG, f"stop: expected at most {MOST_STOPS} texts, none of them empty")
    return Writing(
        lane,
        prompts,
        body.n,
        temperature,
        random.getrandbits(31) if body.seed is None else body.seed,
        min(most, limit or most),
        tuple(stops),
        service.until(body.deadline_s),
    )


async def write(service: Service, writing: Writing) -> AsyncGenerator[Piece, None]:
    """Writes all choices, and yields their pieces as they come; first an empty one, once admitted.

    Raises Refused where the queue is full, or the deadline passes.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
    choices = len(writing.prompts) * writing.n
    with service.admitted(choices), service.waiting(f"{choices} texts"):
        tasks = [
            loop.create_task(_choice(service, writing, choice, pieces)) for choice in range(choices)
        ]
        try:
            yield Piece(0, "")
            going = choices
            while going:
                try:
                    async with asyncio.timeout(max(0.0, writing.until - time.monotonic())):
                        piece = await pieces.get()
                except TimeoutError:
                    raise Refused(504, DEADLINE, "the deadline has passed") from None
                if isinstance(piece, BaseException):
                    raise piece
                going -= piece.finish is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            service.drawn += choices


async def _choice(
    service: Service, writing: Writing, choice: int, pieces: asyncio.Queue[Piece | BaseException]
) -> None:
    """Draws one choice, and puts its pieces into the queue; ends it where a stop comes."""
    loop, text = asyncio.get_running_loop(), Text(writing.lane, writing.stops)
    prompt, sample = divmod(choice, writing.n)
    request = Request(
        writing.prompts[prompt],
        f"text {prompt}",
        (sample,),
        (writing.limit,),
        seed=writing.seed,
        temperature=writing.temperature,
    )
    stopped = loop.create_future()

    def more(ids: np.ndarray) -> None:
        if text.stopped:
            return
        new = text.add(ids, last=False)
        if new:
            pieces.put_nowait(Piece(choice, new))
        if text.stopped and not stopped.done():
            stopped.set_result(ids)

    def see(place: int, ids: np.ndarray) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(more, ids)

    drawing = loop.create_task(service.draw(writing.lane, request, see))
    try:
        await asyncio.wait((drawing, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            ids = stopped.result()
            # the engine gives log-probabilities of whole completions alone
            done = Completion(request.item_id, sample, ids, np.zeros(0, np.float32), True)
            pieces.put_nowait(Piece(choice, "", "stop", done))
            return
        (done,) = await drawing
        new = text.add(done.token_ids, last=True)
        finish = "stop" if done.finished or text.stopped else "length"
        pieces.put_nowait(Piece(choice, new, finish, done))
    except EngineError as error:
        pieces.put_nowait(error)
    finally:
        drawing.cancel()


class Text:
    """Turns the tokens of one choice into text, as they come, up to the first stop."""

    def __init__(self, lane: Lane, stops: Sequence[str]):
        assert lane.policy is not None
        self.decode = lane.policy.prompter.tokenizer.decode
        self.stops, self.given, self.stopped = stops, "", False

    def add(self, ids: np.ndarray, last: bool) -> str:
        """Returns what is new in the text of all tokens so far."""
        text = self.decode(ids)
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, text = True, text[: min(found)]
        elif not last:
            text = text.rstrip("\ufffd")  # half of a character
            text = text[
                : len(text) - max((self._held(text, stop) for stop in self.stops), default=0)
            ]
        if not text.startswith(self.given):
            return ""  # a tokenizer that changes its mind; the last word has it all
        new = text[len(self.given) :]
        self.given = text
        return new

    @staticmethod
    def _held(text: str, stop: str) -> int:
        """How much of the text's end may be the beginning of a stop."""
        ends = range(min(len(stop) - 1, len(text)), 0, -1)
        return next((n for n in ends if text.endswith(stop[:n])), 0)


class ChatReply:
    """Writes the objects of /v1/chat/completions."""

    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, lane: Lane, logprobs: bool):
        self.lane, self.logprobs = lane, logprobs

    def whole(self, text: str, piece: Piece) -> dict[str, Any]:
        """Returns a choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": piece.choice,
            "message": message,
            "finish_reason": piece.finish,
            "logprobs": self._logprobs(piece),
        }

    def part(self, piece: Piece, first: bool) -> dict[str, Any]:
        """Returns a choice of a chunk."""
        delta = ({"role": "assistant"} if first else {}) | {"content": piece.text}
        return {
            "index": piece.choice,
            "delta": delta,
            "finish_reason": piece.finish,
            "logprobs": self._logprobs(piece) if piece.finish else None,
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        done = piece.completion
        if not self.logprobs or done is None or len(done.logp) < len(done.token_ids):
            return None
        assert self.lane.policy is not None
        decode = self.lane.policy.prompter.tokenizer.decode
        content = []
        for i, logp in zip(done.token_ids.tolist(), done.logp.tolist(), strict=True):
            token = decode([i])
            about = {"token": token, "logprob": logp, "bytes": list(token.encode())}
            content.append(about | {"top_logprobs": []})
        return {"content": content, "refusal": None}


class TextReply(ChatReply):
    """Writes the objects of /v1/completions."""

    kind, prefix = "text_completion", "cmpl"

    def whole(self, text: str, piece: Piece) -> dict[str, Any]:
        """Returns a choice."""
        return {
            "index": piece.choice,
            "text": text,
            "finish_reason": piece.finish,
            "logprobs": self._tokens(piece),
        }

    def part(self, piece: Piece, first: bool) -> dict[str, Any]:
        """Returns a choice of a chunk."""
        return self.whole(piece.text, piece)

    def _tokens(self, piece: Piece) -> dict[str, Any] | None:
        found = self._logprobs(piece)
        if found is None:
            return None
        return {
            "tokens": [one["token"] for one in found["content"]],
            "token_logprobs": [one["logprob"] for one in found["content"]],
            "top_logprobs": None,
            "text_offset": None,
        }


async def answer(service: Service, body: TextBody, writing: Writing, reply: ChatReply) -> Response:
    """Answers with the whole text, or with its pieces as they come."""
    about = {
        "id": f"{reply.prefix}-{uuid.uuid4().hex}",
        "object": reply.kind,
        "created": int(time.time()),
        "model": writing.lane.name,
        "system_fingerprint": writing.lane.digest,
    }
    pieces = write(service, writing)
    await anext(pieces)  # what is refused has its own status
    if body.stream:
        if reply.kind == "chat.completion":
            about["object"] = "chat.completion.chunk"
        with_usage = bool((body.stream_options or {}).get("include_usage"))
        events = _events(pieces, about, writing, reply, with_usage)
        return StreamingResponse(events, media_type="text/event-stream")
    texts: dict[int, str] = {}
    choices: dict[int, dict[str, Any]] = {}
    tokens = 0
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            texts[piece.choice] = texts.get(piece.choice, "") + piece.text
            if piece.finish is not None and piece.completion is not None:
                tokens += len(piece.completion.token_ids)
                choices[piece.choice] = reply.whole(texts[piece.choice], piece)
    usage = usage_of(sum(map(len, writing.prompts)), tokens)
    return JSONResponse(about | {"choices": [choices[i] for i in sorted(choices)], "usage": usage})


async def _events(
    pieces: AsyncIterator[Piece],
    about: dict[str, Any],
    writing: Writing,
    reply: ChatReply,
    with_usage: bool,
) -> AsyncIterator[str]:
    """Yields the lines of a stream; an error behind its beginning is a line too."""
    tokens, begun = 0, set()
    try:
        async for piece in pieces:
            if piece.completion is not None:
                tokens += len(piece.completion.token_ids)
            choice = reply.part(piece, piece.choice not in begun)
            begun.add(piece.choice)
            yield _line(about | {"choices": [choice]})
        if with_usage:
            usage = usage_of(sum(map(len, writing.prompts)), tokens)
            yield _line(about | {"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield _line(error_body(error.reason, error.message))
    except EngineError as error:
        yield _line(error_body("engine_error", str(error)))


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
