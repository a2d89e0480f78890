"""The HTTP API over the views of some sources: JSON out, problems as `application/problem+json` (RFC 9457)."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from clickhouse_connect.driver.exceptions import ClickHouseError
from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from infra.clickhouse import ClickHouseUnavailableError
from metrics.catalog import ShownMetric
from serving import alerts, query
from serving.source import Source
from serving.sources import Sources
from serving.views import dimensions

_SourceName = Annotated[str | None, Query(description="only this source; default: all")]

UNKNOWN_TABLE_CODES = ("Code: 60.", "Code: 81.")
"""ClickHouse's answers when the tables, or the whole database, of a source are not there yet."""


def create_app(*served: Source) -> FastAPI:
    """The API of one source, or of several. Reads only; every value in a query is a bound parameter.

    What is said of one source is an object with its `source`; of several, a list of such objects under `sources`.
    """
    sources = Sources(*served)
    app = FastAPI(
        title="Lockstep",
        description="Each window once: exact where certified, else provisional with its bounds.",
        version="1",
        # the pages FastAPI makes of the schema load scripts from elsewhere; `/openapi.json` stays
        docs_url=None,
        redoc_url=None,
    )
    _add_problems(app, sources)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """200 when the API answers and ClickHouse does too; else a problem."""
        sources[0].client.command("SELECT 1")
        return {"status": "ok", **({"source": sources.names[0]} if len(sources) == 1 else {"sources": sources.names})}

    @app.get("/v1/metrics")
    def metrics(source: _SourceName = None) -> dict[str, Any]:
        """The metrics of the catalogs."""
        asked = sources.named(source)
        return {
            **_of_each(asked, lambda each: {"catalog_version": each.catalog.version}),
            "metrics": [
                {"source": each.catalog.source, **describe(metric)} for each in asked for metric in each.catalog.shown
            ],
        }

    @app.get("/v1/status")
    def status(source: _SourceName = None) -> dict[str, Any]:
        """Watermark, freshness, lag, skew, published and certified days, the ledger and whether it closes, alarms."""
        return _of_each(sources.named(source), lambda each: each.status().as_json())

    @app.get("/v1/metrics/{name}")
    def windows(
        name: Annotated[str, Path(description="a metric; its name says of which source")],
        start: Annotated[
            str | None, Query(alias="from", description="ISO time; windows that start then or later")
        ] = None,
        end: Annotated[str | None, Query(alias="to", description="ISO time, exclusive")] = None,
        by: Annotated[list[str] | None, Query(description="DIMENSION=VALUE, repeatable")] = None,
        grain: Annotated[str | None, Query(description="such as 1m; default: the metric's first")] = None,
        layer: Annotated[str | None, Query(description="served, speed or batch; default: served")] = None,
        limit: Annotated[int, Query(description="most rows; of more, the latest")] = query.DEFAULT_LIMIT,
        as_of: Annotated[str | None, Query(description="ISO time; what batch had published by then")] = None,
    ) -> dict[str, Any]:
        """Windows of a metric, in order of time."""
        source = sources.of_metric(name)
        asked = query.build(source.catalog, name, grain, start, end, by or (), layer, limit, None, as_of)
        return query.answer(source.client, source.database, asked)

    @app.get("/v1/alerts")
    def raised(
        name: Annotated[str | None, Query(description="an alert of the catalog; default: all")] = None,
        start: Annotated[str | None, Query(alias="from", description="ISO time; breached then or later")] = None,
        end: Annotated[str | None, Query(alias="to", description="ISO time, exclusive")] = None,
        limit: Annotated[int, Query(description="most alerts; of more, the latest")] = alerts.DEFAULT_LIMIT,
    ) -> dict[str, Any]:
        """Alerts that were raised live, latest first."""
        return sources.raised(name, start, end, limit)

    @app.get("/v1/{rest:path}", include_in_schema=False)
    def nothing(rest: str) -> JSONResponse:
        return problem(
            HTTPStatus.NOT_FOUND, f"nothing is at `/v1/{rest}`. try /v1/metrics, /v1/alerts, /v1/status or /healthz"
        )

    return app


def describe(metric: ShownMetric) -> dict[str, Any]:
    """A metric as `/v1/metrics` lists it."""
    return {
        "name": metric.name,
        "description": metric.description,
        "unit": metric.unit,
        "aggregation": metric.text,
        "where": metric.where,
        "by": list(dimensions(metric)),
        "grains": list(metric.grains),
        "windows": [str(window) for window in metric.windows],
        "exact_in_speed": metric.exact,
        "metric_version": metric.metric_version,
        "href": f"/v1/metrics/{metric.name}",
    }


def _of_each(sources: Sources, say: Callable[[Source], dict[str, Any]]) -> dict[str, Any]:
    said = [{"source": source.catalog.source, **say(source)} for source in sources]
    return said[0] if len(said) == 1 else {"sources": said}


def explain(error: Exception, *sources: Source) -> str:
    """What a reader is told when ClickHouse cannot answer, with the way out."""
    if isinstance(error, ClickHouseUnavailableError):
        return str(error)
    if "Code:" not in str(error):
        return f"ClickHouse at `{sources[0].address}` does not answer. start the stack with `lockstep up`"
    if any(code in str(error) for code in UNKNOWN_TABLE_CODES):
        names = ", ".join(f"`{source.catalog.source}`" for source in sources)
        return f"the tables of source {names} are not all there; start the stack with `lockstep up`, which creates them"
    return f"ClickHouse at `{sources[0].address}` could not answer. its log says why"


def problem(status: HTTPStatus, detail: str) -> JSONResponse:
    """An RFC 9457 problem."""
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    return JSONResponse(body, status_code=status.value, media_type="application/problem+json")


def _add_problems(app: FastAPI, sources: Sources) -> None:
    def unknown_metric(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.NOT_FOUND, str(error))

    def bad_query(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.BAD_REQUEST, str(error))

    def bad_request(_: Request, error: Exception) -> JSONResponse:
        errors = error.errors() if isinstance(error, RequestValidationError) else []
        wrong = [f"`{item['loc'][-1]}`: {item['msg'].lower()}; got `{item.get('input')}`" for item in errors]
        return problem(HTTPStatus.BAD_REQUEST, ". ".join(wrong))

    def unavailable(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, explain(error, *sources))

    app.add_exception_handler(query.UnknownMetricError, unknown_metric)
    app.add_exception_handler(query.QueryError, bad_query)
    app.add_exception_handler(RequestValidationError, bad_request)
    for kind in (ClickHouseUnavailableError, ClickHouseError):
        app.add_exception_handler(kind, unavailable)
