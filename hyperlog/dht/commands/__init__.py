"""What a HyperDHT node says and answers on top of dht-rpc. No IO in here."""
