"""fastapi-websocket-pubsub: its README's server; clients publish to each other by RPC."""

from fastapi import FastAPI
from fastapi_websocket_pubsub import PubSubEndpoint

app = FastAPI()
endpoint = PubSubEndpoint()
endpoint.register_route(app, "/pubsub")
