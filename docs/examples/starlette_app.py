"""A web app with the model inside it: uvicorn starlette_app:app, then curl -d 'What is a robot?' 127.0.0.1:8000/ask."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal, TypedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from fieldlm import AsyncModel


class Mood(TypedDict):
    """What may be answered, and nothing else."""

    mood: Literal["glad", "sad", "angry"]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """Open the model once, before the first request; several answers may run at a time."""
    async with await AsyncModel.open(os.environ.get("MODEL", "smollm2"), parallel=4) as model:
        app.state.model = model
        yield


async def ask(request: Request) -> StreamingResponse:
    model: AsyncModel = request.app.state.model
    question = (await request.body()).decode()

    async def words() -> AsyncGenerator[str]:
        async for chunk in model.stream(question, max_tokens=64):
            yield chunk.text

    return StreamingResponse(words(), media_type="text/plain")


async def mood(request: Request) -> JSONResponse:
    model: AsyncModel = request.app.state.model
    text = (await request.body()).decode()
    return JSONResponse(await model.call(Mood, f"How does the writer feel? {text}"))


app = Starlette(
    routes=[Route("/ask", ask, methods=["POST"]), Route("/mood", mood, methods=["POST"])], lifespan=lifespan
)
