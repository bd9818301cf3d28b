"""Transports: the ways out to one client, and the writer in front of them."""
