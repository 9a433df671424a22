"""Prefect's server, for a workspace's SQLite file: nobody's click is refused because somebody else is writing.

    python -m flows.server --port 4200    # else as `prefect server start`

Prefect begins a transaction as a reader. One that comes to write after another has written in between is refused by
SQLite at once, whatever the timeout (SQLITE_BUSY_SNAPSHOT, https://www.sqlite.org/rescode.html), and the page says
"Unknown error while creating flow run": so it was for 3 of 40 runs that were started while another one was going.
Transactions that begin as writers queue instead. PostgreSQL needs none of this, and its configuration is another class.
"""

import sys
from contextlib import AbstractAsyncContextManager

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

begin = AioSqliteConfiguration.begin_transaction


def begin_as_writer(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
    """Begin a transaction that may write, and wait for others that do."""
    return begin(self, session, with_for_update=True)


if __name__ == "__main__":
    AioSqliteConfiguration.begin_transaction = begin_as_writer  # type: ignore[assignment,method-assign]
    sys.argv[1:1] = ["server", "start"]
    app()
