"""blind-relay: connections through a third peer that sees ciphertext only. No IO in here.

Frames and protomux carry the channel on which peers and relay talk, client and server are the two
sides of that talk, and pairing is what a relay has to decide.
"""
