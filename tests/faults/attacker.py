"""Runs one attack: `python -m tests.faults.attacker '{"name":…,"key":…,"port":…,…}'`.

What the attack tells of itself is printed as one JSON object.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from tests.faults import packets
from tests.faults.hostile import ATTACKS, Target


def main() -> None:
    assert packets.__name__  # imported for the attacks that it adds
    given = json.loads(sys.argv[1])
    os.nice(given["niceness"])
    target = Target(
        bytes.fromhex(given["key"]),
        ("127.0.0.1", given["port"]),
        given["seconds"],
        given["seed"],
        given["options"],
    )
    print(json.dumps(trio.run(ATTACKS[given["name"]], target)))


if __name__ == "__main__":
    main()
