"""blind-relay: connections through a third peer that sees ciphertext only. No IO in here.

Built so far: the two messages. The protomux channel below them and the relaying itself follow.
"""
