"""Have we moved to another address? What others call us says so before anything else does.

An interface tells nothing of a router that got another address, or of another way out of a house.
But every answer says where its request seemed to come from. One host may be wrong or lie, through
as many nodes as it likes; when the last few that answered, each another one, agree on an address
that is not the one we took for ours, it is so. NatSampler would find out, too, but only after most
of its 16 samples, of which a quiet node gets a few in half an hour.

Spec: ours; dht-rpc 6.27.0 keeps the id of an address that it has left.
"""

from __future__ import annotations

from typing import Final

from hyperlog.dht.compact import Address

__all__ = ["Witnesses"]

ENOUGH: Final = 3  # hosts in a row that agree on another address
MAX_WITNESSES: Final = 8
PATIENCE: Final = 10.0  # s before we are taken to have moved again


class Witnesses:
    """What the hosts that answered last call us, one word for each."""

    __slots__ = ("_calm_until", "_said")

    def __init__(self) -> None:
        self._said: dict[Address | str, Address] = {}  # the latest at the end
        self._calm_until = 0.0

    def hear(self, witness: Address, to: Address, known: Address, now: float) -> bool:
        """`witness` calls us `to`, and so far we took `known` for our address; True if we moved.

        Port 0 in `known` stands for any port.
        """
        if now < self._calm_until:
            return False
        said = self._said
        # In a network on one machine, every node has to count for itself.
        who = witness if witness[0] == known[0] else witness[0]
        said.pop(who, None)
        said[who] = to
        if len(said) > MAX_WITNESSES:
            del said[next(iter(said))]
        if not _differs(to, known) or len(said) < ENOUGH:
            return False
        latest = list(said.values())[-ENOUGH:]
        if not all(_differs(other, known) and other[0] == to[0] for other in latest):
            return False
        self._calm_until = now + PATIENCE
        self.forget()
        return True

    def forget(self) -> None:
        """Nothing said so far is about where we are now."""
        self._said.clear()


def _differs(to: Address, known: Address) -> bool:
    return to[0] != known[0] or (known[1] != 0 and to[1] != known[1])
