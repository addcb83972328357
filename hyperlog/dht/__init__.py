"""HyperDHT for Python; imports nothing from the rest of hyperlog."""
