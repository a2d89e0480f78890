"""`python -m speed_layer --catalog PATH [--until-drained] [--only METRIC ...]`: what the local stack supervises."""

import argparse
import logging
import sys
from pathlib import Path

from infra.catalog_file import load_catalog
from infra.settings import load_settings
from metrics.catalog import CatalogError
from speed_layer.main import run


def main() -> int:
    """Runs the speed layer; 2 if the catalog is wrong or a service is missing."""
    parser = argparse.ArgumentParser(prog="python -m speed_layer", description=__doc__)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--until-drained", action="store_true", help="end once the log as of now is published")
    parser.add_argument("--only", nargs="+", default=(), metavar="METRIC", help="compute these beside another run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return run(load_settings(), load_catalog(arguments.catalog), arguments.until_drained, arguments.only)
    except (CatalogError, ConnectionError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
