"""Publish progress from worker processes, as from Celery tasks.

Run: python tasks.py v1 v2
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor

from hubbub import Publisher

publisher = Publisher(os.environ.get("DEPLOYS_HUB", "sqlite:///deploys.db"))


def build(version: str) -> None:
    for status in ("building", "done"):
        key = f"{version} {status}"
        publisher.publish("deploys", {"version": version, "status": status}, idempotency_key=key)


if __name__ == "__main__":
    with ProcessPoolExecutor() as executor:
        list(executor.map(build, sys.argv[1:]))
