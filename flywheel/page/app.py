"""The page as one ASGI app."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from flywheel import __version__
from flywheel.config import PageConfig
from flywheel.errors import FlywheelError, Refused, UsageError
from flywheel.page.access import Access
from flywheel.page.events import Streams
from flywheel.page.forks import finding, forking
from flywheel.page.frames import Frames
from flywheel.page.guard import Guard
from flywheel.page.operate import keeping, operating
from flywheel.page.routes import answer, reading
from flywheel.page.source import Source
from flywheel.page.travel import travelling
from flywheel.page.turnstile import Turnstile

STATIC = Path(__file__).parent / "static"
_LOG = logging.getLogger("flywheel.page")


def build(source: Source, access: Access, config: PageConfig) -> Guard:
    """Return the app that shows a source; each of its errors is one sentence."""
    app = FastAPI(
        title="Flywheel", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json"
    )
    streams, turnstile = Streams(source, config), Turnstile()
    for router in (
        reading(source, streams, Frames(), turnstile),
        forking(source, turnstile),
        finding(source, turnstile),
        operating(source, access),
        keeping(source, turnstile),
        travelling(source, turnstile),
    ):
        app.include_router(router)
    app.add_exception_handler(FlywheelError, _told)
    app.add_exception_handler(RequestValidationError, _wrong)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        """Return the one page; which view it shows is behind the # of its address."""
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)
    return Guard(app, access, config.max_body, streams.leave)


def _told(request: Request, error: Exception) -> Response:
    status = 403 if isinstance(error, Refused) else 404 if isinstance(error, UsageError) else 409
    if isinstance(error, UsageError) and request.method != "GET":
        status = 400
    return answer({"error": str(error), "kind": type(error).__name__}, status)


def _wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    where = ".".join(str(part) for part in first["loc"][1:])
    return answer({"error": f"The request's {where or 'body'} is wrong: {first['msg']}."}, 400)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = "There is nothing at this address." if error.status_code == 404 else f"{error.detail.rstrip('.')}."
    return answer({"error": sentence}, error.status_code)


def _broken(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s broke", request.method, request.url.path, exc_info=error)
    return answer({"error": f"The page itself broke ({type(error).__name__}); its log says where."}, 500)
