"""Getting through NATs: classification, payloads, probes. No IO in here."""
