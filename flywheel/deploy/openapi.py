"""The API as OpenAPI 3.1, made of the routing table and the types that bodies are read by. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from flywheel import __version__
from flywheel.deploy.nested import wire_type
from flywheel.deploy.routes import Route
from flywheel.deploy.wire import JSON, MSGPACK, ErrorAnswer
from flywheel.records import Spec

_COMPONENTS = "#/components/schemas/"
_OF_TOKENS = {
    401: "the token is missing, wrong or revoked",
    403: "the token has none of the scopes",
    429: "the token has used up its requests; Retry-After says when it may come again",
}
_OF_BODIES = {
    400: "the body is neither JSON nor msgpack",
    413: "the body is too long",
    422: "a field is wrong, and is named; nothing was kept",
}
_ALIASES = {"champion": "@champion", "challenger": "@challenger", "previous": "@previous"}


def document(routes: Iterable[Route], spec: Spec | None, root: str = "") -> dict[str, Any]:
    """Return the document, plain values, for policies of this Spec; None where none is in service yet.

    `root` is the path under which the routes are served.
    """
    table = tuple(routes)
    kinds = [kind for route in table for kind in (route.takes, route.gives) if kind is not None]
    types = {kind: _specialized(kind, spec) for kind in [*kinds, ErrorAnswer]}
    refs, components = msgspec.json.schema_components(types.values(), ref_template=_COMPONENTS + "{name}")
    # msgspec calls a type with its observations ActRequest_list_float__
    names = {name: re.sub(r"_.*", "", name) for name in components if name.endswith("_")}
    for name, plain_name in names.items():
        components[name]["title"] = plain_name
    schemas = dict(zip(types, refs, strict=True))
    paths: dict[str, Any] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    plain = {
        "openapi": "3.1.0",
        "info": {
            "title": "Flywheel",
            "version": __version__,
            "description": "Decisions of a judged policy, and all that belongs to them. A field is named where it is "
            "wrong, and an error is a sentence.",
        },
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    found: dict[str, Any] = _renamed(plain, names)
    return found


def _specialized(kind: Any, spec: Spec | None) -> Any:
    """Return the type of a body, with observations of the Spec where it has some."""
    if not getattr(kind, "__parameters__", ()):
        return kind
    if spec is None:
        return kind[list[float]]
    if spec.observation_leaves:
        return kind[wire_type(spec.observation_leaves)]
    (size,) = spec.observation_shape
    return kind[Annotated[list[float], msgspec.Meta(min_length=size, max_length=size)]]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if isinstance(value, str) and value.startswith(_COMPONENTS):
        name = value.removeprefix(_COMPONENTS)
        return _COMPONENTS + names.get(name, name)
    return value


def _operation(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    answer = {} if route.gives is None else schemas[route.gives]
    fails = {404: "there is no such path", 405: "the path takes another method"}
    for some in (_OF_TOKENS if route.scopes else {}, _OF_BODIES if route.takes else {}, route.fails):
        fails.update(some)
    told: dict[str, Any] = {
        "operationId": route.name,
        "summary": f"{route.method} {route.path}",
        "description": route.about,
        "security": [{"token": [scope]} for scope in route.scopes],
        "responses": {
            "200": {"description": route.about, "content": _content(route, answer)},
            **{
                str(status): {
                    "description": f"{why[0].upper()}{why[1:]}.",
                    "content": _content(route, schemas[ErrorAnswer]),
                }
                for status, why in sorted(fails.items())
            },
        },
    }
    if parameters := _parameters(route):
        told["parameters"] = parameters
    if route.takes:
        told["requestBody"] = {"required": True, "content": _content(route, schemas[route.takes])}
    return told


def _content(route: Route, schema: Any) -> dict[str, Any]:
    media = (JSON, MSGPACK) if route.has_msgpack else (JSON,)
    return {name: {"schema": schema} for name in media}


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": "^(@champion|@challenger|@previous|[0-9a-f]{64})$"},
            "examples": {alias: {"value": value} for alias, value in _ALIASES.items()},
        }
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "required": False, "description": why, "schema": {"type": "number"}}
        for name, why in route.query.items()
    ]
    return [*in_path, *in_query]
