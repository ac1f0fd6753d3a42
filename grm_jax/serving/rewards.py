"""Opens the doors of trainers: OpenRLHF's /get_reward, vLLM's /classify, NeMo Gym's /compare.

Each takes and gives the shapes of its clients. Where a response could not be scored its number is
null, and "failures" says why: a client that can do nothing with null fails, as it should.
"""

import asyncio
import functools
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grm_jax.serving.groups import Groups, Scored
from grm_jax.serving.replies import usage_of, weights_of
from grm_jax.serving.scalars import kept_scores, mean, wins
from grm_jax.serving.service import WRONG, Refused, Service
from grm_jax.serving.texts import StrictRoute, conversation_and_response, turns_of

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class How(BaseModel):
    """How a trainer's door is asked, beside the fields of its own client.

    group, group_size: of samples that come one at a time (`groups`).
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    k: int | str | None = None
    seed: int | None = None
    temperature: float | None = None
    k_meta: int | None = None
    deadline_s: Seconds | None = None
    scalar: Literal["mean", "share", "wins", "rank"] | None = None
    group: str = ""
    group_size: int | None = None


class Address(How):
    """How a door is asked by its address, by clients whose body cannot say: ?k=8&scalar=wins."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RewardBody(How):
    """What OpenRLHF's remote reward model is sent."""

    query: str | list[str]
    prompts: list[str] | None = None
    labels: list[Any] | None = None


class ClassifyBody(How):
    """What verl and others send to vLLM's /classify. input: a text, or a list of them."""

    model: str | None = None
    input: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    use_activation: bool | None = None


class CompareBody(How):
    """What NeMo Gym's genrm_compare is sent."""

    conversation_history: list[dict[str, Any]]
    response_objs: list[dict[str, Any] | str]
    principle: str | None = None


def make_router(service: Service) -> APIRouter:
    """Makes the doors of trainers, on a service."""
    router, groups = APIRouter(route_class=StrictRoute), Groups(service)

    def asked(body: How) -> dict[str, Any]:
        """What `Groups` is told."""
        scalar = body.scalar or service.settings.scalar
        system = service.named(None).judge.system
        if scalar == "share" and system.bounds is None:
            problem = f"scalar: expected another than share: a {system.kind} may score below 0"
            raise Refused(422, WRONG, problem)
        # of the weights that judge: others may be served once a group is complete
        ask = functools.partial(service.how, body.k, body.seed, body.temperature, body.k_meta)
        return {"ask": ask, "until": service.until(body.deadline_s), "scalar": scalar}

    async def scored(pairs: Sequence[tuple[Any, str]], body: How) -> list[Scored]:
        """Samples of one conversation that came together are a group; others wait for theirs."""
        by_conversation: dict[str, list[int]] = {}
        for i, (conversation, _) in enumerate(pairs):
            by_conversation.setdefault(repr(conversation), []).append(i)
        how, results = asked(body), [Scored(None, None)] * len(pairs)
        samples = len(by_conversation) * len(how["ask"]()["samples"])
        if samples > service.settings.queue:
            problem = f"{samples} samples of {len(by_conversation)} conversations; expected at most"
            problem += f" {service.settings.queue}, the whole queue: send them in several requests"
            raise Refused(422, "too_many_samples", problem)

        async def judge(members: list[int]) -> None:
            conversation, responses = pairs[members[0]][0], [pairs[i][1] for i in members]
            if len(members) > 1:
                found = await groups.score_list(conversation, responses, **how)
            else:
                more = {"key": body.group, "size": body.group_size}
                found = [await groups.score(conversation, responses[0], **how, **more)]
            for i, one in zip(members, found, strict=True):
                results[i] = one

        if len(by_conversation) == 1:
            await judge(list(range(len(pairs))))
            return results
        tasks = [asyncio.create_task(judge(members)) for members in by_conversation.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # where one failed, or the client left
        return results

    @router.post("/get_reward")
    async def get_reward(body: RewardBody, request: Request) -> JSONResponse:
        body = body.model_copy(update=of_address(request.query_params, body.model_fields_set))
        queries = [body.query] if isinstance(body.query, str) else body.query
        prompts = body.prompts or [None] * len(queries)
        if not queries or len(prompts) != len(queries):
            problem = (
                f"query, prompts: expected as many (1 or more), got {len(queries)}, {len(prompts)}"
            )
            raise Refused(422, WRONG, problem)
        pairs = [conversation_and_response(q, p) for q, p in zip(queries, prompts, strict=True)]
        found = await scored(pairs, body)
        return JSONResponse(
            {
                "rewards": [one.value for one in found],
                "scores": [unit(one) for one in found],
                "extra_logs": {
                    "grm_valid": [float(one.judged.verdict.valid) if one.judged else 0.0
                                  for one in found],
                    "grm_members": [float(one.members) for one in found],
                },
                "failures": [one.failure for one in found],
            }
            | _weights(found)
        )  # fmt: skip

    @router.post("/classify")
    @router.post("/v1/classify")
    async def classify(body: ClassifyBody) -> JSONResponse:
        service.named(body.model)
        if (body.input is None) == (body.messages is None):
            raise Refused(422, WRONG, "expected one of input and messages")
        if body.messages is not None:
            turns = turns_of(body.messages)
            if not turns or turns[-1]["role"] != "assistant":
                raise Refused(422, WRONG, "messages: expected the assistant's turn as the last")
            pairs = [(turns[:-1], turns[-1]["content"])]
        else:
            texts = [body.input] if isinstance(body.input, str) else body.input or []
            pairs = [conversation_and_response(text, field="input") for text in texts]
        found = await scored(pairs, body)
        # vLLM's default puts what a model says into [0, 1]
        values = [one.value if body.use_activation is False else unit(one) for one in found]
        tokens = [
            (one.judged.prompt_tokens, one.judged.completion_tokens) if one.judged else (0, 0)
            for one in found
        ]
        read, written = (sum(of) for of in zip(*tokens, strict=True)) if tokens else (0, 0)
        return JSONResponse(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "data": [
                    {
                        "index": i,
                        "label": None,
                        "probs": [value],
                        "num_classes": 1,
                        "failure": one.failure,
                        "members": one.members,
                    }
                    for i, (one, value) in enumerate(zip(found, values, strict=True))
                ],
                "usage": usage_of(read, written),
                "model": service.settings.name,
            }
            | _weights(found)
        )

    @router.post("/compare")
    async def compare(body: CompareBody) -> JSONResponse:
        if body.principle:
            problem = "principle: this model takes none; expected it to be left out"
            raise Refused(422, WRONG, problem)
        conversation = turns_of(body.conversation_history, "conversation_history")
        responses = [text_of(response, i) for i, response in enumerate(body.response_objs)]
        if not responses:
            raise Refused(422, WRONG, "response_objs: expected one or more")
        found = await groups.score_list(conversation, responses, **asked(body))
        return JSONResponse(
            {
                "rewards": [one.value for one in found],
                "comparison_results": comparisons(found),
                "metrics": {
                    "grm_valid": float(found[0].judged.verdict.valid if found[0].judged else 0),
                    "grm_failed": float(found[0].judged.verdict.failed if found[0].judged else 0),
                },
                "failures": [one.failure for one in found],
            }
            | _weights(found)
        )

    return router


def of_address(query: Mapping[str, str], said: set[str]) -> dict[str, Any]:
    """Reads what an address says of how it is asked, and its body (`said`) does not.

    Raises RequestValidationError, as for a body, for what is unknown or wrong.
    """
    try:
        fields = Address.model_validate_strings(dict(query)).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = [problem | {"loc": ("query", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from None
    return {name: value for name, value in fields.items() if name not in said}


def unit(one: Scored) -> float | None:
    """Returns the mean score of a response, put into [0, 1]; None where there is none.

    By the bounds of the judge's scores; where these have none, as those of Bradley-Terry, by the
    logistic function, as vLLM does.
    """
    scores = kept_scores(one.judged.verdict) if one.judged else []
    if one.judged is None or not scores:
        return None
    score, bounds = mean(scores)[one.index], one.judged.lane.judge.system.bounds
    if bounds is None:
        small = math.exp(-abs(score))
        return (1 if score > 0 else small) / (1 + small)
    low, high = bounds(one.members)
    return min(1.0, max(0.0, (score - low) / (high - low)))


def comparisons(found: Sequence[Scored]) -> list[dict[str, Any]] | None:
    """Returns NeMo Gym's results of pairs, one for each judgment that counts.

    score_1, score_2: as the judge gave them (1 to 10). ranking: 1 where the first wins, 6 where the
    second does, 3.5 where they tie.
    """
    judged = found[0].judged
    scores = kept_scores(judged.verdict) if judged else []
    if len(found) < 2 or not scores:
        return None
    return [
        {
            "response_i": i,
            "response_j": j,
            "judge_idx": judge,
            "score_1": s[a.index],
            "score_2": s[b.index],
            "ranking": 6 - 5 * wins([(s[a.index], s[b.index])])[0],
        }
        for judge, s in enumerate(scores)
        for i, a in enumerate(found)
        for j, b in enumerate(found[i + 1 :], i + 1)
    ]


def text_of(response: dict[str, Any] | str, index: int) -> str:
    """Returns the final answer of an object of the Responses API, without its reasoning."""
    if isinstance(response, str):
        return response
    if isinstance(response.get("output_text"), str):
        return response["output_text"]
    output, texts = response.get("output"), []
    for item in output if isinstance(output, list) else []:
        if not isinstance(item, dict) or item.get("type") != "message":
            continue
        content = item.get("content")
        if isinstance(content, str):
            texts.append(content)
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "output_text":
                texts.append(str(part.get("text", "")))
    if not texts:
        problem = f"response_objs[{index}]: expected a message with output_text in output"
        raise Refused(422, WRONG, problem)
    return "".join(texts)


def _weights(found: Sequence[Scored]) -> dict[str, Any]:
    """Names the weights of a reply; of several, where they changed between its groups."""
    lanes = {one.judged.lane.digest: one.judged.lane for one in found if one.judged}
    if len(lanes) == 1:
        return weights_of(next(iter(lanes.values())))
    return {"weights": sorted(lanes)} if lanes else {}
