"""``redis://``: many machines, around one Redis or Valkey server.

====================================================  ====================================================
``redis://user:password@host:6379/0``                 one server; Redis 6.2 or newer, or Valkey
``rediss://…``                                        the same over TLS
``redis+unix:///run/redis.sock?db=0``                 the same over a socket in the file system
``redis+sentinel://host1:26379,host2/service/0``      whoever the sentinels say is the primary
``redis+cluster://host1:6379,host2``                  a cluster of Redis 7 or newer, or Valkey
====================================================  ====================================================

A node has two connections to the server: one for commands, on which what is published within one turn of the
event loop goes out in one write, and one that listens. They live and die together: if either breaks, or does
not answer, both are given up, and until there are two new ones and everything is subscribed to again, nothing
is sent. So a node that does not hear does not speak either. In a cluster there are two to each primary, which
all live and die together; publications stay on the primary of their channel (sharded pub/sub).

What a channel keeps lies in two keys and is only touched by the scripts in ``lua``, each of which is
one step to all others. A channel without history has no keys. Who is in a channel lies in one more key, see
``presence.py``.

If the server loses the keys of a stream, the nodes that are subscribed to the channel declare its history
again when they are back, and the stream begins a new epoch. If the server comes back with an older state, the
stream gets a new epoch as well: ``generation.py`` says how that is found out.

=================  =======================================================================================
``engine.py``      what hubs ask for: publications and histories
``presence.py``    who is in which channel, and under which lease
``scripts.py``     the scripts in ``lua``; ``keys.py``: what things are called in Redis
``generation.py``  what tells a server's data from what it has after a restart, or what a replica has
``known.py``       what this node knows of a stream, to compare with after an outage
``supervisor.py``  one session after another; what waits while there is none; telling the node of outages
``session.py``     the connections that live and die together
``servers.py``     which servers those go to; ``url.py``: what the URL says about it
``link.py``        one connection, and what is on its way there and back
=================  =======================================================================================
"""

from hubbub.engines.redis.engine import RedisEngine

__all__ = ["RedisEngine"]
