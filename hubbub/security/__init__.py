"""Checks of clients before they are accepted, and protection of logs."""
