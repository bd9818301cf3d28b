"""One client's connection: what it receives, what it sends, how it ends."""
