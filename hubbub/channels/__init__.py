"""Declared channels: patterns, and the registry that finds the declaration of a channel."""
