"""One process's share of a hub: connections, subscriptions, presence."""
