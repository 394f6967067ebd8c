"""The HTTP application around an engine: routes, validation, OpenAPI. Knows nothing of Ray Serve.

Handlers read `app.state.engine` at each request, so a new release is served from one assignment on, and so is what is
beside it (services.gateway.split). Answers are the engine's bytes; the response models only describe them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import AfterValidator
from starlette.types import ASGIApp, Receive, Scope, Send

import sonder
from services.gateway import observing, problems, schemas, tables
from services.gateway.answers import FIELDS
from services.gateway.doors import Doors, HttpDoors
from services.gateway.engine import MAX_ANSWERS, Engine
from services.gateway.experiment_routes import experiments
from services.gateway.experimenting import learn_eligible
from services.gateway.hot import RELEASE_HEADER, HotReads
from services.gateway.schemas import PathItemId, PathUserId
from services.gateway.split import SplitEngine
from services.gateway.stages import Wish
from services.gateway.told import EXPERIMENT_HEADER, arms_of
from sonder.core.errors import NotReady

_JSON = "application/json"
WISHES = frozenset({"from", "diversity"})  # what an experiment may decide where the caller does not


def _check_fields(fields: str | None) -> str | None:
    unknown = [name for name in (fields or "").split(",") if fields is not None and name not in FIELDS]
    if unknown:
        raise ValueError(f"unknown field {unknown[0][:64]!r}, expected some of {','.join(FIELDS)}")
    return fields


Fields = Annotated[
    str | None, AfterValidator(_check_fields), Query(description="comma-separated: " + ", ".join(FIELDS))
]
Count = Annotated[int, Query(ge=1, le=MAX_ANSWERS)]
From = Annotated[
    Literal["vector", "interests"],
    Query(alias="from", description="`interests`: each interest and the vector find their share, ranked in turns"),
]


Category = Annotated[
    str | None,
    Query(min_length=1, max_length=512, description="only items of this category or below it: a/b has a/b/c"),
]
MaxAge = Annotated[
    float | None,
    Query(
        gt=0, le=36_500, description="only items whose first event is at most so many days before the release's as_of"
    ),
]
Diversity = Annotated[
    float, Query(ge=0, le=1, description="0: the nearest; towards 1: what differs from those above it (MMR)")
]


ReleaseName = Annotated[
    str | None, Query(max_length=64, description="the release to answer from, among those that are served")
]
ReleaseHeader = Annotated[
    str | None, Header(alias=RELEASE_HEADER.decode(), max_length=64, description="the same; `release` goes before it")
]


async def _named_release(request: Request, release: ReleaseName = None, header: ReleaseHeader = None) -> None:
    """For `_engine`; async, because others are run in a thread."""
    request.state.release = header if release is None else release


NAMED = [Depends(_named_release)]


def _problem_response(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_INVALID: dict[int | str, dict[str, Any]] = {
    401: _problem_response("No API key, or an unknown one, where keys are needed"),
    403: _problem_response("The key has not this scope, or may not read these fields"),
    422: _problem_response("The request is malformed"),
    429: _problem_response("Too many requests; Retry-After says when to come back"),
}
_UNREADY: dict[int | str, dict[str, Any]] = {503: _problem_response("No release is loaded yet")}
_NOT_SERVED: dict[int | str, dict[str, Any]] = {404: _problem_response("The named release is not served")}
_NOT_WRITTEN: dict[int | str, dict[str, Any]] = {
    503: _problem_response("No release is loaded yet, or the log cannot be written: send the same events again")
}
_UNKNOWN_ITEM: dict[int | str, dict[str, Any]] = {
    404: _problem_response("The release has no vector of this item, or the named one is not served"),
    503: _problem_response("No release is loaded yet, or retrieval does not answer"),
}
_TOO_LARGE: dict[int | str, dict[str, Any]] = {413: _problem_response("The body is too large")}
_BATCH: dict[int | str, dict[str, Any]] = {
    200: {"content": {tables.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    **_TOO_LARGE,
}

_ARMS: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            EXPERIMENT_HEADER: {
                "description": "the arms that this answer is of, `name=arm`, several with `, ` between; absent where "
                "no experiment could have changed it",
                "schema": {"type": "string"},
            }
        }
    }
}

events = APIRouter(prefix="/v1", tags=["events"], responses={**_INVALID, **_NOT_WRITTEN})
_READ: dict[int | str, dict[str, Any]] = {**_INVALID, **_NOT_SERVED, **_UNREADY}
users = APIRouter(prefix="/v1", tags=["users"], responses=_READ, dependencies=NAMED)
erasures = APIRouter(prefix="/v1", tags=["users"], responses={**_INVALID, **_UNREADY})
items = APIRouter(prefix="/v1", tags=["items"], responses={**_INVALID, **_UNREADY}, dependencies=NAMED)
audiences = APIRouter(prefix="/v1", tags=["audiences"], responses=_READ, dependencies=NAMED)
operations = APIRouter(tags=["operations"])


def create_app(engine: Engine | None, *, doors: Doors | None = None) -> FastAPI:
    """The application; without an engine it answers 503 until `app.state.engine` is assigned.

    `doors`: who may ask; without them nobody is asked who they are.
    """
    app = FastAPI(
        title="Sonder",
        version=sonder.__version__,
        redirect_slashes=False,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
        telemetry=observing.NO_TELEMETRY,
    )
    app.state.engine = engine
    app.state.serving = None  # services.gateway.serving, where something follows what is served
    if engine is not None:
        engine.announce()
    app.include_router(events)
    app.include_router(users)
    app.include_router(erasures)
    app.include_router(items)
    app.include_router(audiences)
    app.include_router(experiments)
    app.include_router(operations)
    app.include_router(observing.observation)
    app.add_middleware(HotReads, route=_route_of(read_profile))
    problems.install(app)
    if doors is not None:
        app.add_middleware(HttpDoors, doors=doors)
    app.add_middleware(EncodedPath)
    observing.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


class EncodedPath:
    """Routes on the path as it was sent, percent-encoded, so that a user id may hold a slash (schemas.PathUserId)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if b"%" in scope.get("raw_path", b""):
            scope["path"] = scope["raw_path"].decode("ascii", "replace")
        await self._app(scope, receive, send)


def _route_of(endpoint: Any) -> Any:
    return next(route for route in users.routes if getattr(route, "endpoint", None) is endpoint)


def _operation_id(route: APIRoute) -> str:
    return route.name


def _engine(request: Request) -> Engine | SplitEngine:
    """What answers this request; NotFound where it names a release that is not served."""
    engine: Engine | SplitEngine | None = request.app.state.engine
    if engine is None:
        raise NotReady("No release is loaded yet", do="Try again shortly.")
    return engine.named(getattr(request.state, "release", None))


def _json(content: bytes) -> Response:
    arms = arms_of(content)
    return Response(content, media_type=_JSON, headers=None if arms is None else {EXPERIMENT_HEADER: arms})


def accepts(header: str, media_type: str) -> bool:
    """Whether an Accept header names a media type, and not with a weight of 0."""
    for entry in header.lower().split(","):
        name, _, parameters = entry.partition(";")
        if name.strip() == media_type:
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _names(fields: str | None) -> list[str] | None:
    return None if fields is None else fields.split(",")


@events.post("/events", status_code=202, response_model=schemas.EventsAnswer, responses=_TOO_LARGE)
async def accept_events(request: Request, asked: schemas.EventsRequest) -> Response:
    """Up to 1,000 events; on disk when this answers, in the users' profiles a moment later.

    An event whose `event_id` is known already changes nothing, so a batch may be sent again. Rows that are no events
    are told one by one and do not stop the others.
    """
    return Response(await _engine(request).accept(asked.events), 202, media_type=_JSON)


@users.get("/users/{user_id}", response_model=schemas.Profile, responses=_ARMS)
async def read_profile(request: Request, user_id: PathUserId, fields: Fields = None, fresh: bool = False) -> Response:
    """The stored profile at once, or with `fresh` one computed now. An unknown user gets the declared cold profile."""
    engine = _engine(request)
    if fresh:
        return _json(await engine.fresh_profile(user_id, _names(fields)))
    return _json(engine.profile(user_id, _names(fields)))


@users.post("/users:batchGet", response_model=schemas.Profiles, responses=_BATCH)
async def read_profiles(request: Request, asked: schemas.BatchGetRequest, fields: Fields = None) -> Response:
    """Stored profiles of up to 1,000 users, in the order asked for; an Arrow IPC stream to who accepts one."""
    engine = _engine(request)
    await learn_eligible(engine, asked.user_ids)
    if accepts(request.headers.get("accept", ""), tables.MEDIA_TYPE):
        content = await asyncio.to_thread(engine.profiles_stream, asked.user_ids, _names(fields))
        return Response(content, media_type=tables.MEDIA_TYPE, headers={"vary": "accept"})
    return _json(engine.profiles(asked.user_ids, _names(fields)))


@erasures.delete("/users/{user_id}", response_model=schemas.ErasureAnswer)
async def erase_user(request: Request, user_id: PathUserId) -> Response:
    """Erase the user from stores, log and answers, and keep what it did before this moment out of every later build."""
    serving = request.app.state.serving
    return _json(await (_engine(request) if serving is None else serving).erase(user_id))


@users.get("/users/{user_id}/embedding", response_model=schemas.EmbeddingAnswer, responses=_ARMS)
async def read_embedding(request: Request, user_id: PathUserId) -> Response:
    """The user's vector; null for a cold user."""
    return _json(_engine(request).profile(user_id, ["embedding"]))


@users.get("/users/{user_id}/interests", response_model=schemas.InterestsAnswer, responses=_ARMS)
async def read_interests(request: Request, user_id: PathUserId) -> Response:
    """What the user is interested in, strongest first."""
    return _json(_engine(request).profile(user_id, ["interests"]))


@users.get("/users/{user_id}/affinities", response_model=schemas.AffinitiesAnswer, responses=_ARMS)
async def read_affinities(request: Request, user_id: PathUserId) -> Response:
    """How much the user leans towards each category, calibrated and against the population; dislikes are negative."""
    return _json(_engine(request).profile(user_id, ["affinities"]))


@users.get("/users/{user_id}/segments", response_model=schemas.SegmentsAnswer, responses=_ARMS)
async def read_segments(request: Request, user_id: PathUserId, fresh: bool = False) -> Response:
    """Lifecycle, behaviour cluster and the saved audiences that the user is in; with `fresh` all of it computed now."""
    engine, parts = _engine(request), ["segments", "audiences"]
    return _json(await engine.fresh_profile(user_id, parts) if fresh else engine.profile(user_id, parts))


@users.get("/users/{user_id}/scores", response_model=schemas.ScoresAnswer, responses=_ARMS)
async def read_scores(request: Request, user_id: PathUserId) -> Response:
    """Calibrated probabilities of what the user will do next, with their drivers."""
    return _json(_engine(request).profile(user_id, ["scores"]))


@users.get("/users/{user_id}/explanation", response_model=schemas.ExplanationAnswer, responses=_ARMS)
async def read_explanation(request: Request, user_id: PathUserId) -> Response:
    """Why the profile says what it says."""
    return _json(await _engine(request).explanation(user_id))


@users.get("/users/{user_id}/recommendations", response_model=schemas.RecommendationsAnswer, responses=_ARMS)
async def read_recommendations(
    request: Request,
    user_id: PathUserId,
    k: Count = 10,
    seen: bool = False,
    by: From = "vector",
    category: Category = None,
    max_age_days: MaxAge = None,
    diversity: Diversity = 0.0,
) -> Response:
    """Items nearest to the user; those of the history only with `seen`. Popular items, marked so, for a cold user."""
    wish = Wish(category, max_age_days, diversity)
    explicit = WISHES & request.query_params.keys()
    return _json(
        await _engine(request).recommendations(
            user_id, k=k, seen=seen, with_interests=by == "interests", wish=wish, explicit=explicit
        )
    )


@users.get("/users/{user_id}/similar", response_model=schemas.SimilarAnswer, responses=_ARMS)
async def read_similar(request: Request, user_id: PathUserId, k: Count = 10) -> Response:
    """Users nearest to the user."""
    return _json(await _engine(request).similar(user_id, k=k))


@items.get("/items/{item_id}/similar", response_model=schemas.SimilarItemsAnswer, responses=_UNKNOWN_ITEM)
async def read_similar_items(request: Request, item_id: PathItemId, k: Count = 10) -> Response:
    """Items nearest to the item, by the cosine of their vectors."""
    return _json(await _engine(request).similar_items(item_id, k=k))


@audiences.post("/audiences:preview", response_model=schemas.AudiencePreview, responses=_TOO_LARGE)
async def preview_audience(request: Request, asked: schemas.AudiencePreviewRequest) -> Response:
    """Size, share, overlap and members of a rule before it is saved, from a random sample of many users."""
    return _json(await _engine(request).preview_audience(asked.rule, num_sampled=asked.sample))


@audiences.post("/audiences:lookalike", response_model=schemas.LookalikeAnswer, responses=_TOO_LARGE)
async def grow_audience(request: Request, asked: schemas.LookalikeRequest) -> Response:
    """The users most like the seeds, best first; takes seconds. `sonder lookalike` makes audiences of any size."""
    return _json(await _engine(request).lookalike(asked.seeds, size=asked.size, exclude=asked.exclude))


@operations.get("/v1/release", response_model=schemas.ReleaseAnswer, responses=_READ, dependencies=NAMED)
async def read_release(request: Request) -> Response:
    """The release that answers come from, and those that may be named beside it."""
    return _json(_engine(request).release())


@operations.get("/healthz", response_model=schemas.Health)
async def read_health() -> Response:
    """The process is alive."""
    return _json(b'{"status":"ok"}')


@operations.get("/readyz", response_model=schemas.Health, responses=_UNREADY)
async def read_readiness(request: Request) -> Response:
    """A release is loaded, its store matches it, and every stage has answered."""
    if not await _engine(request).is_ready():
        raise NotReady(
            "The online store is not of the served release, or a stage has not answered yet", do="Try again shortly."
        )
    return _json(b'{"status":"ok"}')


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema with problem documents in place of its own validation errors."""
    if app.openapi_schema is None:
        promise = (sonder.__doc__ or "").splitlines()[0]
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes, description=promise)
        components = schema["components"]["schemas"]
        components.pop("HTTPValidationError", None)
        components.pop("ValidationError", None)
        problem = schemas.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(problem.pop("$defs"), Problem=problem)
        app.openapi_schema = schema
    return app.openapi_schema


def openapi_json() -> bytes:
    """The contract as docs/openapi.json keeps it: `python -m services.gateway.http > docs/openapi.json`."""
    return orjson.dumps(create_app(None).openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    sys.stdout.buffer.write(openapi_json())
