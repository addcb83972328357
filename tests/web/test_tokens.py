"""Tokens that are no good, over HTTP and over WebSockets: refused, and nothing is written."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
import time

import pytest
import trio
from trio_websocket import ConnectionClosed

from hyperlog.dht import KeyPair
from hyperlog.tokens import ALGORITHM, AUDIENCE, ISSUER, TYPE
from tests.web.site import LOGS, open_session, record, site, until

DAY = 86400.0


def part(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(header, payload, secret, digest=hashlib.sha256):
    head = f"{part(header)}.{part(payload)}"
    return f"{head}.{part(hmac.new(secret, head.encode(), digest).digest())}"


class Forger:
    """Somebody who knows all of a token but the secret; or, with it, what a server never signs."""

    def __init__(self, here):
        self.here = here
        with sqlite3.connect(here.server.config.data / "registry.sqlite") as connection:
            [(kid, secret)] = connection.execute("SELECT kid, secret FROM secret").fetchall()
        connection.close()
        self.kid, self.secret = kid, bytes(secret)

    def payload(self, **changes):
        _, claims = self.here.server.tokens.issue("cerco", now=time.time())
        given = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": int(time.time()),
            "exp": int(time.time()) + 3600,
            "jti": claims.jti,
            "sub": "cerco",
            "instances": "*",
            "scope": "ingest",
        }
        return {name: value for name, value in (given | changes).items() if value is not None}

    def token(self, *, secret=None, header=None, digest=hashlib.sha256, **changes):
        head = {"alg": ALGORITHM, "typ": TYPE, "kid": self.kid} | (header or {})
        return signed(head, self.payload(**changes), secret or self.secret, digest)


def no_signature(forger):
    head = {"alg": "none", "typ": TYPE, "kid": forger.kid}
    return f"{part(head)}.{part(forger.payload())}."


def revoked(forger):
    here = forger.here
    token, claims = here.server.tokens.issue("cerco", now=time.time())
    here.server.tokens.revoke(claims.jti, time.time())
    return token


def public_key_pem(forger):
    return b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(forger.here.server.public_key)


BAD = {
    "alg none": (no_signature, "TOKEN_INVALID"),
    "alg NoNe": (
        lambda forger: (
            f"{part({'alg': 'NoNe', 'typ': TYPE, 'kid': forger.kid})}.{part(forger.payload())}."
        ),
        "TOKEN_INVALID",
    ),
    "another algorithm": (
        lambda forger: forger.token(header={"alg": "HS512"}, digest=hashlib.sha512),
        "TOKEN_INVALID",
    ),
    "an algorithm with public keys": (
        lambda forger: forger.token(header={"alg": "RS256"}),
        "TOKEN_INVALID",
    ),
    "signed with the public key": (
        lambda forger: forger.token(secret=public_key_pem(forger)),
        "TOKEN_INVALID",
    ),
    "signed with the bare public key": (
        lambda forger: forger.token(secret=forger.here.server.public_key),
        "TOKEN_INVALID",
    ),
    "a short secret": (lambda forger: forger.token(secret=b"secret"), "TOKEN_INVALID"),
    "another secret": (lambda forger: forger.token(secret=b"x" * 32), "TOKEN_INVALID"),
    "another kid": (lambda forger: forger.token(header={"kid": "../../keys"}), "TOKEN_INVALID"),
    "no kid": (lambda forger: forger.token(header={"kid": None}), "TOKEN_INVALID"),
    "a key of its own": (
        lambda forger: forger.token(
            header={"jwk": {"kty": "oct", "k": part(b"x" * 32)}}, secret=b"x" * 32
        ),
        "TOKEN_INVALID",
    ),
    "expired": (
        lambda forger: forger.here.token(now=time.time() - 2 * DAY, lifetime=DAY),
        "TOKEN_EXPIRED",
    ),
    "from the future": (
        lambda forger: forger.here.token(now=time.time() + DAY),
        "TOKEN_INVALID",
    ),
    "another audience": (lambda forger: forger.token(aud="hyperlog panel"), "TOKEN_INVALID"),
    "no audience": (lambda forger: forger.token(aud=None), "TOKEN_INVALID"),
    "another issuer": (lambda forger: forger.token(iss="elsewhere"), "TOKEN_INVALID"),
    "another type": (lambda forger: forger.token(header={"typ": "JWT"}), "TOKEN_INVALID"),
    "never issued": (lambda forger: forger.token(jti="0" * 16), "TOKEN_REVOKED"),
    "revoked": (revoked, "TOKEN_REVOKED"),
    "for another key pair": (
        lambda forger: forger.here.token(key=KeyPair.generate().public_key),
        "TOKEN_MISMATCH",
    ),
    "for reading": (lambda forger: forger.here.reader(), "TOKEN_MISMATCH"),
    "oversize": (lambda forger: forger.token(padding="x" * 5000), "TOKEN_INVALID"),
    "path-like application": (
        lambda forger: forger.token(sub="../../etc/cron.d/x"),
        None,  # the signature is good and the name is one: what matters is where it leads to
    ),
    "no token": (lambda forger: "nonsense", "TOKEN_INVALID"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_refused_over_http_and_leaves_nothing(tmp_path, name):
    make, code = BAD[name]
    async with site(tmp_path) as here:
        token = make(Forger(here))
        before, outside = here.listing(), sorted(tmp_path.rglob("*"))
        async with here.client(token) as client:
            answer = await client.post(LOGS, json={"message": "x", "instance": "a"})
        if code is None:
            assert len(here.listing()) == 1
            assert {path.parent for path in set(tmp_path.rglob("*.log"))} == {here.folder}
            return
        assert answer.status_code == (403 if code == "TOKEN_MISMATCH" else 401)
        assert answer.json()["code"] == code
        assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
        assert here.listing() == before
        assert sorted(tmp_path.rglob("*")) == outside
        assert token not in answer.text


@pytest.mark.parametrize("name", [name for name, (_, code) in BAD.items() if code is not None])
@pytest.mark.parametrize("where", ["header", "hello"])
async def test_a_bad_token_is_refused_over_a_websocket_and_leaves_nothing(tmp_path, name, where):
    make, code = BAD[name]
    async with site(tmp_path) as here:
        token = make(Forger(here))
        before = here.listing()
        if where == "header":
            refused = await here.upgrade(Authorization=f"Bearer {token}")
            assert refused.status_code in (401, 403)
            assert refused.json()["code"] == code
        else:
            async with here.websocket() as websocket:
                answer = await open_session(websocket, token=token)
                assert answer["refused"]["code"] == code
                with pytest.raises(ConnectionClosed):
                    await websocket.get_message()
        assert here.listing() == before
        assert here.server.connections.applications() == {}


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Basic dXNlcjpwYXNz", "Token x", "Bearer a b", "x" * 5000]
)
async def test_another_authorization_is_refused(tmp_path, value):
    async with site(tmp_path) as here, here.client(Authorization=value) as client:
        answer = await client.post(LOGS, json={"message": "x"})
        assert (answer.status_code, answer.json()["code"]) == (401, "TOKEN_INVALID")


async def test_no_authorization_and_two_of_them_are_refused(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        answer = await client.post(LOGS, json={"message": "x"})
        assert (answer.status_code, answer.json()["code"]) == (401, "TOKEN_REQUIRED")
        value = f"Bearer {here.token()}"
        twice = [("Authorization", value), ("Authorization", value)]
        answer = await client.post(LOGS, json={"message": "x"}, headers=twice)
        assert (answer.status_code, answer.json()["code"]) == (401, "TOKEN_INVALID")
        assert here.listing() == []


async def test_a_websocket_without_any_token_is_refused(tmp_path):
    async with site(tmp_path) as here, here.websocket() as websocket:
        answer = await open_session(websocket)
        assert answer["refused"]["code"] == "TOKEN_REQUIRED"
        assert here.listing() == []


async def test_a_websocket_of_the_javascript_rule_needs_a_token_in_its_header(tmp_path):
    async with site(tmp_path) as here:
        async with here.websocket() as websocket:
            await websocket.get_message()
            await websocket.send_message(record(0))
            with pytest.raises(ConnectionClosed):
                await websocket.get_message()
        assert here.listing() == []
        async with here.websocket(token=here.token()) as websocket:
            await websocket.get_message()
            await websocket.send_message(record(0))
            await until(lambda: len(here.lines()) == 1)


@pytest.mark.parametrize("query", ["token={0}", "access_token={0}", "x={0}", "a=1&Authorization=b"])
@pytest.mark.parametrize("path", [LOGS, "/api/v1/records", "/healthz"])
async def test_a_token_in_the_address_is_refused_even_if_it_is_good(tmp_path, query, path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        token = here.token()
        answer = await client.post(f"{path}?{query.format(token)}", json={"message": "x"})
        assert (answer.status_code, answer.json()["code"]) == (400, "TOKEN_IN_URL")
        assert token not in answer.text
        assert here.listing() == []


async def test_a_token_in_the_address_of_a_websocket_is_refused(tmp_path):
    async with site(tmp_path) as here:
        refused = await here.upgrade(f"/api/v1/ingest?token={here.token()}")
        assert (refused.status_code, refused.json()["code"]) == (400, "TOKEN_IN_URL")


async def test_a_token_is_for_its_application_and_instances_alone(tmp_path):
    async with site(tmp_path) as here:
        token = here.token(instances="desk-*")
        async with here.client(token) as client:
            records = [{"message": "a", "instance": "desk-1"}, {"message": "b", "instance": "x"}]
            answer = await client.post(LOGS, json=records)
            assert answer.status_code == 207
            assert answer.json()["errors"][0]["field"] == "instance"
            answer = await client.post(LOGS, json=records[1])
            assert (answer.status_code, answer.json()["code"]) == (403, "TOKEN_MISMATCH")
        async with here.websocket(token=token) as websocket:
            answer = await open_session(websocket, instance="x")
            assert answer["refused"]["code"] == "TOKEN_MISMATCH"
        async with here.websocket(token=token) as websocket:
            answer = await open_session(websocket, instance="desk-2", application="midas")
            assert answer["refused"]["code"] == "TOKEN_MISMATCH"
        assert [line["message"] for line in here.lines()] == ["a"]


@pytest.mark.parametrize("where", ["header", "hello"])
async def test_an_open_websocket_ends_within_a_second_of_the_revocation(tmp_path, where):
    async with site(tmp_path) as here:
        token, claims = here.server.tokens.issue("cerco", now=time.time())
        header, hello = (token, None) if where == "header" else (None, token)
        async with here.websocket(token=header) as websocket:
            assert "welcome" in await open_session(websocket, token=hello)
            here.server.tokens.revoke(claims.jti, time.time())
            with trio.fail_after(1.0):
                answer = json.loads(await websocket.get_message())
                assert answer["refused"]["code"] == "TOKEN_REVOKED"
                with pytest.raises(ConnectionClosed):
                    await websocket.get_message()


async def test_refusals_are_counted_by_reason(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        await client.post(LOGS, json={"message": "x"})
        await client.post(LOGS, json={"message": "x"}, headers={"Authorization": "Bearer x"})
        text = (await client.get("/metrics")).text
        assert 'hyperlog_refused_total{reason="TOKEN_REQUIRED"} 1\n' in text
        assert 'hyperlog_refused_total{reason="TOKEN_INVALID"} 1\n' in text
