"""The doors: routes through which clients reach the declared channels of a hub without a client library."""
