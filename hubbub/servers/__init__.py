"""uvicorn as Hubbub uses it: protocols that let the hub write directly to its clients' sockets."""
