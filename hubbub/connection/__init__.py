"""One client's connection: messages in both directions, its channels, and how it is closed."""
