"""dht-rpc: requests, replies, the routing table and iterative queries. No IO in here."""
