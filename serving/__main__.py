"""Serve the API and the dashboard of one catalog: `python -m serving --catalog PATH`."""

import argparse
import sys
from pathlib import Path

import uvicorn

from infra.catalog_file import load_catalog
from infra.clickhouse import ClickHouseUnavailableError, connect
from infra.settings import Settings, SettingsError, load_settings
from metrics.catalog import Catalog, CatalogError
from serving import dashboard, schema
from serving.api import create_app
from serving.source import Source

WAIT_SECONDS = 60.0
"""How long to wait for ClickHouse, which starts at the same time as this process."""


def main(arguments: list[str] | None = None) -> int:
    """Create what tables and views are missing, then serve until SIGTERM.

    Returns:
        0 after an ordered stop, 2 when the setup is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("--catalog", type=Path, required=True, help="catalog file")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
        catalog = load_catalog(options.catalog)
        client = connect(settings, wait_seconds=WAIT_SECONDS)
        schema.apply(client, catalog, settings.database(catalog.source))
        client.close()
    except (SettingsError, CatalogError, ClickHouseUnavailableError) as error:
        print(error, file=sys.stderr)
        return 2
    serve(settings, catalog)
    return 0


def serve(settings: Settings, catalog: Catalog) -> None:
    """Serve a catalog whose tables exist, until SIGTERM or SIGINT."""
    source = Source(settings, catalog)
    app = create_app(source)
    dashboard.mount(app, source)
    uvicorn.run(app, host=settings.host, port=settings.api_port, log_level="warning", timeout_graceful_shutdown=2)


if __name__ == "__main__":
    sys.exit(main())
