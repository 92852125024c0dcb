"""Program that fills a PostgreSQL database with collections and items; runs beside the API.

Usage: ``python stac_loader.py COLLECTIONS ITEMS``, two files with one JSON object a line. Where
the database lies is told by the environment of PostgreSQL (``PGHOST`` and its like).
"""

from __future__ import annotations

import sys

from pypgstac.db import PgstacDB
from pypgstac.load import Loader, Methods
from pypgstac.migrate import Migrate


def main() -> None:
    with PgstacDB() as database:
        Migrate(database).run_migration()
        loader = Loader(database)
        loader.load_collections(sys.argv[1], Methods.insert)
        loader.load_items(sys.argv[2], Methods.insert)


if __name__ == "__main__":
    main()
