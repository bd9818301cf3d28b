"""Publish one message from a script.

Run: python announce.py 'v3 tomorrow'
"""

import os
import sys

from hubbub import Publisher

with Publisher(os.environ.get("DEPLOYS_HUB", "sqlite:///deploys.db")) as publisher:
    position = publisher.publish("deploys", sys.argv[1])
print(f"This was message {position.offset}.")
