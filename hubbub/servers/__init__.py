"""Servers: what a server has to do for clients to be written to directly."""
