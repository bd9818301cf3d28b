"""Hubbub beside the servers one would choose instead, in one run on one core. Run: scripts/bench"""
