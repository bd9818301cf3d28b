"""Checks on clients, and protection of logs."""
