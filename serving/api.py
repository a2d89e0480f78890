"""The HTTP API over the views of one source: JSON out, problems as `application/problem+json` (RFC 9457)."""

from http import HTTPStatus
from typing import Annotated, Any

from clickhouse_connect.driver.exceptions import ClickHouseError
from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from infra.clickhouse import ClickHouseUnavailableError
from metrics.catalog import Metric
from serving import query
from serving.source import Source

UNKNOWN_TABLE_CODES = ("Code: 60.", "Code: 81.")
"""ClickHouse's answers when the tables, or the whole database, of a source are not there yet."""


def create_app(source: Source) -> FastAPI:
    """The API of one source. Reads only; every value in a query is a bound parameter."""
    app = FastAPI(
        title="Lockstep",
        description="Each window once: exact where certified, else provisional with its bounds.",
        version="1",
        # the pages FastAPI makes of the schema load scripts from elsewhere; `/openapi.json` stays
        docs_url=None,
        redoc_url=None,
    )
    _add_problems(app, source)

    @app.get("/healthz")
    def health() -> dict[str, str]:
        """200 when the API answers and ClickHouse does too; else a problem."""
        source.client.command("SELECT 1")
        return {"status": "ok", "source": source.catalog.source}

    @app.get("/v1/metrics")
    def metrics() -> dict[str, Any]:
        """The metrics of the catalog."""
        return {
            "source": source.catalog.source,
            "catalog_version": source.catalog.version,
            "metrics": [describe(metric) for metric in source.catalog.metrics],
        }

    @app.get("/v1/status")
    def status() -> dict[str, Any]:
        """Watermark, freshness, published and certified days, ledger."""
        return {"source": source.catalog.source, **source.status().as_json()}

    @app.get("/v1/metrics/{name}")
    def windows(
        name: Annotated[str, Path(description="a metric of the catalog")],
        start: Annotated[
            str | None, Query(alias="from", description="ISO time; windows that start then or later")
        ] = None,
        end: Annotated[str | None, Query(alias="to", description="ISO time, exclusive")] = None,
        by: Annotated[list[str] | None, Query(description="DIMENSION=VALUE, repeatable")] = None,
        grain: Annotated[str | None, Query(description="such as 1m; default: the metric's first")] = None,
        layer: Annotated[str, Query(description="served, speed or batch")] = "served",
        limit: Annotated[int, Query(description="most rows; of more, the latest")] = query.DEFAULT_LIMIT,
    ) -> dict[str, Any]:
        """Windows of a metric, in order of time."""
        asked = query.build(source.catalog, name, grain, start, end, by or (), layer, limit)
        return query.answer(source.client, source.database, asked)

    @app.get("/v1/{rest:path}", include_in_schema=False)
    def nothing(rest: str) -> JSONResponse:
        return problem(HTTPStatus.NOT_FOUND, f"nothing is at `/v1/{rest}`. try /v1/metrics, /v1/status or /healthz")

    return app


def describe(metric: Metric) -> dict[str, Any]:
    """A metric as `/v1/metrics` lists it."""
    return {
        "name": metric.name,
        "aggregation": metric.agg.text,
        "where": metric.where,
        "by": list(metric.by),
        "grains": list(metric.grains),
        "exact_in_speed": metric.agg.exact,
        "metric_version": metric.metric_version,
        "href": f"/v1/metrics/{metric.name}",
    }


def explain(error: Exception, source: Source) -> str:
    """What a reader is told when ClickHouse cannot answer, with the way out."""
    if isinstance(error, ClickHouseUnavailableError):
        return str(error)
    if "Code:" not in str(error):
        return f"ClickHouse at `{source.address}` does not answer. start the stack with `lockstep up`"
    if any(code in str(error) for code in UNKNOWN_TABLE_CODES):
        return (
            f"the tables of source `{source.catalog.source}` are not all there; "
            "start the stack with `lockstep up`, which creates them"
        )
    return f"ClickHouse at `{source.address}` could not answer. its log says why"


def problem(status: HTTPStatus, detail: str) -> JSONResponse:
    """An RFC 9457 problem."""
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    return JSONResponse(body, status_code=status.value, media_type="application/problem+json")


def _add_problems(app: FastAPI, source: Source) -> None:
    def unknown_metric(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.NOT_FOUND, str(error))

    def bad_query(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.BAD_REQUEST, str(error))

    def bad_request(_: Request, error: Exception) -> JSONResponse:
        errors = error.errors() if isinstance(error, RequestValidationError) else []
        wrong = [f"`{item['loc'][-1]}`: {item['msg'].lower()}; got `{item.get('input')}`" for item in errors]
        return problem(HTTPStatus.BAD_REQUEST, ". ".join(wrong))

    def unavailable(_: Request, error: Exception) -> JSONResponse:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, explain(error, source))

    app.add_exception_handler(query.UnknownMetricError, unknown_metric)
    app.add_exception_handler(query.QueryError, bad_query)
    app.add_exception_handler(RequestValidationError, bad_request)
    for kind in (ClickHouseUnavailableError, ClickHouseError):
        app.add_exception_handler(kind, unavailable)
