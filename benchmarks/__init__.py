"""Hubbub beside other servers, one core for each side. Run: scripts/bench."""
