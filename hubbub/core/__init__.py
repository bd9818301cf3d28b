"""The sans-IO heart: no sockets, no FastAPI, no event loop. Plain calls in, plain calls out."""
