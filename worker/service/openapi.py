"""The description of the service as OpenAPI 3.1, made from its routes and its messages."""

import inspect
from typing import Any

import msgspec

from ledgerq.worker.remote import wire
from ledgerq.worker.service.routes import ROUTES, Route

__all__ = ["openapi"]


def openapi(version: str) -> dict[str, Any]:
    """The whole document."""
    types: set[type[wire.Message]] = {route.answer for route in ROUTES} | {wire.ErrorBody}
    types |= {route.body for route in ROUTES if route.body is not None}
    in_order = sorted(types, key=lambda type_: type_.__name__)
    schemas, components = msgspec.json.schema_components(in_order, ref_template="#/components/schemas/{name}")
    names = dict(zip(in_order, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ledgerq", "version": version},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, names: dict[type[wire.Message], dict[str, Any]]) -> dict[str, Any]:
    name = getattr(route.act, "__name__", "")
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in route.path.split("/")
        if part.startswith("{")
    ]
    parameters += [{"name": one, "in": "query", "schema": {"type": "string"}} for one in route.query]
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": inspect.getdoc(route.act),
        "parameters": parameters,
        "responses": {
            "200": {"description": "It is done.", "content": _content(names[route.answer])},
            "default": {"description": "It is refused, or failed.", "content": _content(names[wire.ErrorBody])},
        },
    }
    if route.scope:
        operation["description"] = f"Scope: {route.scope}."
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(names[route.body])}
    return operation


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind in (wire.JSON, wire.MSGPACK)}
