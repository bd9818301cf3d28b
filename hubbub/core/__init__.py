"""The sans-IO core: no sockets, no FastAPI, no event loop. It is driven by plain calls."""
