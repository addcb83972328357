"""hyperlog: traces and logs shipped peer to peer over HyperDHT."""
