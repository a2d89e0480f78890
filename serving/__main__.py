"""Serve the API and the dashboard of some sources: `python -m serving --catalog PATH`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from infra.catalog_file import load_catalogs
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
    parser.add_argument("--catalog", type=Path, required=True, help="catalog file, or a directory of them")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
        catalogs = load_catalogs(options.catalog)
        client = connect(settings, wait_seconds=WAIT_SECONDS)
        for catalog in catalogs:
            schema.apply(client, catalog, settings.database(catalog.source))
        client.close()
    except (SettingsError, CatalogError, ClickHouseUnavailableError) as error:
        print(error, file=sys.stderr)
        return 2
    serve(settings, catalogs)
    return 0


def serve(settings: Settings, catalogs: Sequence[Catalog]) -> None:
    """Serve catalogs whose tables exist, until SIGTERM or SIGINT."""
    sources = [Source(settings, catalog) for catalog in catalogs]
    app = create_app(*sources)
    dashboard.mount(app, *sources)
    uvicorn.run(app, host=settings.host, port=settings.api_port, log_level="warning", timeout_graceful_shutdown=2)


if __name__ == "__main__":
    sys.exit(main())
