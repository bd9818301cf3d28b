"""``postgresql://``: many machines, one database, and publishing as a part of one's own transactions.

The streams are tables, and publishing is a function of the database (``sql/functions.sql``), so that it
belongs to the transaction that calls it, whichever language or trigger that is. ``NOTIFY`` tells the nodes
where there is something to read; what they have seen of each channel tells them what. A notification that is
lost costs time, not messages: every node looks by itself as well, once a second.

With ``?notify=off`` there are no notifications, and nodes look more often.

One task for each node holds one connection, which listens and reads. When it is lost, or does not answer, or
does not hear, the task throws away all connections and connects anew. A small pool is for everything else.
"""

from hubbub.engines.postgres.engine import PostgresEngine

__all__ = ["PostgresEngine"]
