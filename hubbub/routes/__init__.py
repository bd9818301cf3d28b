"""The routes of ``hub.router``: doors to declared channels."""
