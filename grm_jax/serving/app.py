"""Makes the application: the doors of the server, on one service."""

import asyncio
import contextlib
import logging
import math
import signal
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from grm_jax import __version__
from grm_jax.json_files import cut
from grm_jax.serving import openai, rewards
from grm_jax.serving.gate import Gate, error_body
from grm_jax.serving.logs import say
from grm_jax.serving.metrics import Metrics
from grm_jax.serving.replies import verdict_of_reply, weights_of
from grm_jax.serving.service import WRONG, Refused, Service, record_of
from grm_jax.serving.texts import StrictRoute
from grm_jax.serving.worker import EngineError

LONGEST = 600  # characters of a message
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class JudgeBody(BaseModel):
    """What /v1/judge takes: fields of a record, and how it is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    conversation: str | list[dict[str, Any]]
    responses: list[str]
    id: str | None = None
    reference: str | None = None
    rubric: list[dict[str, Any]] | None = None
    principles: str | None = None
    k: int | str | None = None
    seed: int | None = None
    temperature: float | None = None
    k_meta: int | None = None
    deadline_s: Seconds | None = None
    judgments: bool = True


def make_app(service: Service) -> Gate:
    """Makes the ASGI application of a service, which lives as long as it does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            # outside of the main thread nothing is heard
            loop.add_signal_handler(signal.SIGHUP, lambda: service.spawn(_reload(service)))
        yield
        await service.stop()

    app = FastAPI(title="grm_jax", version=__version__, lifespan=lifespan)
    app.state.service = service
    app.router.route_class = StrictRoute
    _errors(app)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        ready = service.state == "ready"
        about = {"status": service.state} | (weights_of(service.lane) if service.lane else {})
        return JSONResponse(about, 200 if ready else 503)

    @app.post("/v1/judge")
    async def judge(body: JudgeBody) -> JSONResponse:
        of_record = {"conversation", "responses", "id", "reference", "rubric", "principles"}
        fields = body.model_dump(include=of_record)
        record = record_of({name: x for name, x in fields.items() if x is not None})
        how = service.how(body.k, body.seed, body.temperature, body.k_meta)
        judged = await service.judge(record, how, service.until(body.deadline_s))
        return JSONResponse(verdict_of_reply(judged, how, body.judgments))

    @app.post("/v1/reload")
    async def reload() -> dict[str, Any]:
        """Reads the served folder anew; the request names none."""
        return weights_of(await service.reload())

    routers = (openai.make_router(service), rewards.make_router(service))
    for router in routers:
        app.include_router(router)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    paths = {route.path for route in routes if isinstance(route, Route)}
    metrics = Metrics(service, paths | {"/metrics"})

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def replayed() -> None:
        service.replayed += 1

    settings = service.settings
    return Gate(
        app,
        settings.api_key,
        settings.body_bytes,
        settings.remembered,
        settings.requests,
        metrics.saw,
        replayed,
    )


async def _reload(service: Service) -> None:
    try:
        await service.reload()
    except Refused as error:
        say("weights", logging.ERROR, error=error.message)


def _errors(app: FastAPI) -> None:
    """Answers errors in one shape, and never with what was sent."""

    def reply(status: int, reason: str, message: str, retry: int | None = None) -> JSONResponse:
        headers = None if retry is None else {"Retry-After": str(max(1, math.ceil(retry)))}
        safe = cut(message, LONGEST).encode("utf-8", "backslashreplace").decode()
        return JSONResponse(error_body(reason, safe), status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        counts = app.state.service.refused
        counts[error.reason] = counts.get(error.reason, 0) + 1
        return reply(error.status, error.reason, error.message, error.retry_after)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [
            f"{'.'.join(map(str, problem['loc'][1:])) or 'body'}: {problem['msg']}"
            for problem in error.errors()[:8]
        ]
        if isinstance(error.body, bytes):  # it was not read
            problems = [
                "body: expected a JSON object, and the header Content-Type: application/json"
            ]
        return reply(422, WRONG, "; ".join(problems))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, ValueError):  # of `texts.StrictRoute`
            return reply(error.status_code, WRONG, str(error.__cause__))
        return reply(error.status_code, WRONG, str(error.detail))

    @app.exception_handler(EngineError)
    async def engine(request: Request, error: EngineError) -> JSONResponse:
        return reply(500, "engine_error", str(error))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        say("error", logging.ERROR, path=request.url.path, error=repr(error))
        return reply(500, "internal_error", type(error).__name__)
