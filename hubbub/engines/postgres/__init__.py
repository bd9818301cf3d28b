"""``postgresql://``: many machines, one database, and publishing as a part of the application's transactions.

Streams are tables, and publishing is a function of the database (``sql/functions.sql``), so it belongs to the
transaction that calls it, from any language or trigger. ``NOTIFY`` names the channels that have something new
to read; the node knows how far it has read each of them. A lost notification costs time, not messages: every
node also polls once a second.

With ``?notify=off`` there are no notifications, and nodes poll more often.

One task of each node (``listener.py``) has one connection, which listens and reads. When the connection is
lost, does not answer, or receives no notifications, the task closes all connections and reconnects. A small
pool is for all other requests.
"""

from hubbub.engines.postgres.engine import PostgresEngine

__all__ = ["PostgresEngine"]
