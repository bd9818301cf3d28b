"""Transports: bytes in and out of one client."""
