"""The kinds of NAT, as nftables rules for a Linux router.

Every router drops what comes in unasked. Where it did not, Linux would remember such a packet, and
give its port to nobody until it has forgotten it: the next packet of the host inside would leave
from another port, which no router that is bought in a shop would do.

| kind | a socket inside is seen at | who may send to it |
|---|---|---|
| open | its own address, and knows it (firewalled=False) | everybody |
| public | its own address, and does not know | everybody |
| forwarded | one address, also before it has sent anything | everybody |
| full-cone | one address | everybody |
| restricted | one address | hosts that it has sent to |
| port-restricted | one address | addresses that it has sent to |
| predictable | another port for each destination, counting up | addresses that it has sent to |
| symmetric | a random port for each destination | addresses that it has sent to |
"""

from __future__ import annotations

OPEN = "open"
PUBLIC = "public"
FORWARDED = "forwarded"
FULL_CONE = "full-cone"
RESTRICTED = "restricted"
PORT_RESTRICTED = "port-restricted"
PREDICTABLE = "predictable"
SYMMETRIC = "symmetric"

WITHOUT_NAT = (OPEN, PUBLIC)
NATS = (FORWARDED, FULL_CONE, RESTRICTED, PORT_RESTRICTED, PREDICTABLE, SYMMETRIC)
KINDS = WITHOUT_NAT + NATS
RANDOM = (PREDICTABLE, SYMMETRIC)
"""What peers see as random: another port for each destination."""

FIRST_PREDICTABLE, PREDICTABLE_PORTS = 20000, 4096

# A port-restricted router; the others are told apart by what they put into the three places.
RULES = """
flush ruleset
table ip lab {{
  set used {{
    type inet_service
    flags dynamic
    size 65535
  }}
  set met {{
    type ipv4_addr . inet_service
    flags dynamic
    size 65535
  }}
  counter probes {{ }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname "wan" ct state new drop
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname "lan" udp length 9 counter name probes
    iifname "lan" meta l4proto udp update @used {{ udp sport }}
    iifname "lan" meta l4proto udp update @met {{ ip daddr . udp sport }}
    {admitted}
    iifname "wan" ct state new drop
  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    {inward}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    oifname "wan" {outward}
  }}
}}
"""
PASSED_ON = {
    FORWARDED: "meta l4proto udp",
    FULL_CONE: "udp dport @used",
    RESTRICTED: "ip saddr . udp dport @met",
}


def rules(kind: str, *, outside: str, inside: str) -> str:
    """What to feed to `nft -f -` on a router with interfaces `wan` and `lan`.

    Args:
        kind: one of NATS.
        outside: the router's address on `wan`.
        inside: the host on `lan` that is passed on to what comes in new, where something is.
    """
    admitted = inward = ""
    outward = "masquerade"
    if kind in PASSED_ON:
        inward = f'iifname "wan" {PASSED_ON[kind]} dnat to {inside}'
        admitted = 'iifname "wan" ct status dnat accept'
    elif kind == SYMMETRIC:
        outward = "masquerade fully-random"
    elif kind == PREDICTABLE:
        ports = ", ".join(f"{i} : {FIRST_PREDICTABLE + i}" for i in range(PREDICTABLE_PORTS))
        outward = (
            f"meta l4proto udp snat ip to {outside} : numgen inc mod {PREDICTABLE_PORTS} "
            f"map {{ {ports} }}"
        )
    elif kind != PORT_RESTRICTED:
        raise ValueError(f"{kind} is no kind of NAT")
    return RULES.format(admitted=admitted, inward=inward, outward=outward)
