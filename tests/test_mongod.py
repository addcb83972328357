"""The real mongod of the tests."""

from __future__ import annotations

import pymongo
import pytest
from pymongo.errors import OperationFailure

pytestmark = pytest.mark.mongod


def test_root_may_write_to_the_replica_set(mongod):
    with mongod.client() as client:
        collection = client["test"]["written"]
        collection.insert_one({"_id": 1})
        assert collection.find_one() == {"_id": 1}
        assert client.admin.command("hello")["setName"] == "rs0"


def test_nobody_else_may(mongod):
    (member,) = mongod.members
    with member.client() as client, pytest.raises(OperationFailure, match="authentication"):
        client["test"]["written"].find_one()


def test_a_killed_server_comes_back_with_what_it_acknowledged(own_mongod):
    with own_mongod.client(w="majority", journal=True) as client:
        client["test"]["written"].insert_one({"_id": 1})
        (member,) = own_mongod.members
        member.kill()
        member.start()
        assert own_mongod.primary() is member
        with pymongo.timeout(10):
            assert client["test"]["written"].find_one() == {"_id": 1}
