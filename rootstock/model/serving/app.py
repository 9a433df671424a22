"""The application: which paths there are, who may ask, and how a request becomes an answer."""

import asyncio
import logging
import secrets
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from rootstock.model.model import Prediction
from rootstock.model.serving import uploads
from rootstock.model.serving.answers import Answer, Health, Problem, answer
from rootstock.model.serving.batching import Batcher
from rootstock.model.serving.limits import Limits, Refused
from rootstock.model.serving.measured import GONE, Metrics, measured
from rootstock.model.serving.reloading import Follower
from rootstock.system import causes

log = logging.getLogger(__name__)
LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]
RETRY_AFTER_S = 1
DESCRIPTION = (
    "Upload images, and get the class of each with its calibrated probability. An image that cannot be used is "
    "answered with the reason, and affects no other; a status other than 200 concerns the request as a whole."
)
STATUSES = {
    400: "No image in the request, or a form that cannot be read",
    401: "The token is missing or wrong",
    408: "The upload took too long",
    413: "Too many bytes or images",
    415: "Neither a form nor an image",
    503: "Busy: try again after the seconds in Retry-After",
    504: "The answer took too long",
}
UPLOADS = {
    "required": True,
    "content": {
        uploads.FORM: {
            "schema": {
                "type": "object",
                "required": [uploads.FIELD],
                "properties": {uploads.FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


@dataclass(frozen=True)
class Parts:
    """What an application consists of: the model, what predicts by it, what is counted, and the limits of requests.

    `top` is how many classes an answer has per image.
    """

    follower: Follower
    batcher: Batcher
    metrics: Metrics
    limits: Limits
    top: int = 3


def application(parts: Parts, token: str = "", *, for_loopback: bool = True) -> ASGIApp:
    """Return the application.

    Args:
        parts: of which it consists.
        token: that a request has to bear; empty for none.
        for_loopback: without a token, refuse requests for the name of another host, so that no page of another site can
            read answers.
    """
    app = FastAPIOffline(title="Rootstock", description=DESCRIPTION, redoc_url=None)
    memory, known = uploads.Memory(parts.limits.uploads_bytes), Depends(_token_check(token))
    _add_state(app, parts, memory, known)
    _add_predictions(app, parts, memory, known)
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(ClientDisconnect, _nobody)
    if for_loopback and not token:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)
    return measured(app, parts.metrics)


def _add_state(app: FastAPI, parts: Parts, memory: uploads.Memory, known: Any) -> None:  # noqa: ANN401
    metrics, batcher, follower = parts.metrics, parts.batcher, parts.follower
    metrics.waiting.set_function(lambda: len(batcher))
    metrics.uploads.set_function(lambda: memory.held)
    metrics.failing.set_function(lambda: follower.failing)

    @app.get("/healthz", responses={503: {"model": Health}})
    async def healthz(response: Response) -> Health:
        """Whether the server can predict, and by which model; needs no token."""
        response.status_code = 200 if batcher.is_alive else 503
        return Health(status="ok" if batcher.is_alive else "failing", model=follower.current.name)

    @app.get("/metrics", dependencies=[known], response_class=Response)
    async def show_metrics() -> Response:
        """Metrics in Prometheus' format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_predictions(app: FastAPI, parts: Parts, memory: uploads.Memory, known: Any) -> None:  # noqa: ANN401
    limits, batcher = parts.limits, parts.batcher
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": why} for status, why in STATUSES.items()
    }

    @app.post("/predict", dependencies=[known], responses=described, openapi_extra={"requestBody": UPLOADS})
    async def predict(request: Request) -> Answer:
        """Classify one or many images."""
        async with uploads.received(request, limits, memory, batcher.check) as images:
            served = parts.follower.current
            predictions = await _answered(batcher.submit(served, images), request, limits.answer_s)
        parts.metrics.count(predictions)
        return answer(served.name, predictions, parts.top)


def _token_check(token: str) -> Any:  # noqa: ANN401  a dependency of FastAPI
    bearer = HTTPBearer(auto_error=False, description="The token of the server, if it has one")
    expected = token.encode()

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        # As bytes, since compare_digest raises for text that is not ASCII; headers are read as Latin-1.
        presented = given.credentials.encode("latin-1", "replace") if given else b""
        if token and not secrets.compare_digest(presented, expected):
            raise Refused(401, "The token is missing or wrong. Expected the header Authorization: Bearer <token>.")

    return check


async def _answered(waiting: "list[Future[Prediction]]", request: Request, seconds: float) -> list[Prediction]:
    """Wait for predictions; those that come too late, or that nobody waits for any more, are cancelled.

    Raises:
        Refused: they came too late, or cannot be computed here and now.
        ClientDisconnect: the client is gone.
    """
    predictions = asyncio.ensure_future(_all(waiting))
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {predictions, gone}
    try:
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if predictions in done:
            return predictions.result()
    except Exception as error:
        if not (sentence := causes.describe(error)):
            raise
        log.error("A batch failed: %s", sentence)
        raise Refused(503, "The images cannot be classified at the moment; the server's log says why.") from None
    finally:
        gone.cancel()
        predictions.cancel()
        for one in waiting:
            one.cancel()
    if gone in done:
        raise ClientDisconnect
    raise Refused(504, f"Timed out after {seconds:g} s; the request was cancelled.")


async def _all(waiting: "list[Future[Prediction]]") -> list[Prediction]:
    return [await asyncio.wrap_future(one) for one in waiting]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refusal(request: Request, refused: Exception) -> JSONResponse:
    assert isinstance(refused, Refused)
    headers = {"Connection": "close"} if refused.close else {}
    if refused.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"detail": refused.sentence}, refused.status, headers)


async def _nobody(request: Request, left: Exception) -> Response:
    """Return what is counted for a client that has left; nobody receives it."""
    return Response(status_code=GONE)
