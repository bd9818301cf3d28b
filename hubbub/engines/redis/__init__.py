"""``redis://``: hubs on many machines share one Redis or Valkey server, or a cluster.

====================================================  ====================================================
``redis://user:password@host:6379/0``                 one server; Redis 6.2 or newer, or Valkey
``rediss://…``                                        one server, over TLS
``redis+unix:///run/redis.sock?db=0``                 one server, over a socket in the file system
``redis+sentinel://host1:26379,host2/service/0``      the primary that the sentinels know
``redis+cluster://host1:6379,host2``                  a cluster of Redis 7 or newer, or Valkey
====================================================  ====================================================

A node has two connections to the server: one for commands, on which the publications of one turn of the event
loop go out in one write, and one for listening. If either breaks, or gets no answer, both are closed, and no
command is sent until there are two new ones and all channels are subscribed to again. So a node that cannot
receive does not publish either. In a cluster, a node has two connections to each primary, which are closed
together as well; publications stay on the primary of their channel (sharded publish/subscribe).

The history of a channel is in two keys, which only the scripts in ``lua`` change, each in one step. A channel
without a history has no keys. Presence is in one more key for each channel, see ``presence.py``.

If the server loses the keys of a stream, the nodes that are subscribed to the channel declare its history
again when they reconnect, and the stream begins a new epoch. If the server restarts with an older state, the
stream gets a new epoch as well: ``generation.py`` says how that is noticed.

==================  ======================================================================================
``engine.py``       ``RedisEngine``: publications and histories
``presence.py``     presence entries and their leases
``scripts.py``      the scripts in ``lua``
``keys.py``         the names of keys and topics
``generation.py``   how a server's loss of data is noticed
``known.py``        the last known position of each stream, to compare with after an outage
``supervisor.py``   reconnecting, and the commands that wait for it
``connections.py``  the connections that are opened and closed together
``connection.py``   one connection, and the requests on it
``topology.py``     which servers to connect to
``address.py``      the URL
``diagnostics.py``  ``hubbub doctor``
==================  ======================================================================================
"""

from hubbub.engines.redis.engine import RedisEngine

__all__ = ["RedisEngine"]
