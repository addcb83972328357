"""The Noise handshake and the encrypted frames of secret-stream. No IO in here."""
