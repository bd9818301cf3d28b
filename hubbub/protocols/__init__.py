"""Wire forms: how publications are encoded and carried to clients."""
