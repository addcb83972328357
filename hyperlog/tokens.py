"""Application tokens: who may bring records for which application, and who may read them.

A token is a JSON Web Token signed with HMAC-SHA-256 by a secret that only this server has:

    {"alg": "HS256", "typ": "hyperlog+jwt", "kid": …}
    {"iss": "hyperlog", "aud": "hyperlog application", "iat": …, "exp": …, "jti": …, "sub": "cerco",
     "instances": "desk-*", "scope": "ingest", "cnf": {"key": "<64 hex digits>"}}

`sub` is the application; `exp` is missing if the token never expires. With `cnf` only a peer that
has proved this key pair can use it, so that a stolen one is of no use elsewhere. What is signed is
not enough: the server also has to remember that it issued the token, and not to have revoked it.

Spec: RFC 7519, RFC 8725 (pinned algorithm, explicit type, one audience for each use).
"""

from __future__ import annotations

import fnmatch
import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from hyperlog.errors import ConfigError, KeyFileError, TokenError
from hyperlog.registry import PATIENCE, Registry

__all__ = ["EVERY_APPLICATION", "IssuedToken", "Scope", "TokenAuthority", "TokenClaims"]

Scope: TypeAlias = Literal["ingest", "read"]

ALGORITHM: Final = "HS256"
TYPE: Final = "hyperlog+jwt"
ISSUER: Final = "hyperlog"
AUDIENCE: Final = "hyperlog application"
SCOPES: Final[tuple[Scope, ...]] = ("ingest", "read")
EVERY_APPLICATION: Final = "*"
"""as the application of a token: all of them; for reading only"""
DEFAULT_LIFETIME: Final = 365 * 86400.0  # s
MAX_LIFETIME: Final = 100 * 365 * 86400.0  # s
SECRET_SIZE: Final = 32  # bytes: what RFC 7518 section 3.2 asks of HS256
MAX_TOKEN: Final = 4096  # characters; ours have about 450
MAX_NAME: Final = 64  # characters of an application, an instance or a pattern of it
MAX_TOKENS: Final = 100_000  # issued and not forgotten
LEEWAY: Final = 60.0  # s that clocks may differ
FORGOTTEN_AFTER: Final = 90 * 86400.0  # s from a token's end to its removal from the registry

_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token allows. Times are seconds since 1970."""

    jti: str
    """names the token, and is no secret"""
    application: str
    instances: str
    """pattern with `*` and `?`"""
    scopes: frozenset[Scope]
    key: bytes | None
    """public key of the only peer that may use it; None for any sender"""
    issued_at: float
    expires_at: float | None
    """None for never"""
    kid: str
    """names the secret that it is signed with"""

    def allows_instance(self, instance: str) -> bool:
        return fnmatch.fnmatchcase(instance, self.instances)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """An entry of the registry."""

    claims: TokenClaims
    revoked_at: float | None

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        expires_at = self.claims.expires_at
        return "expired" if expires_at is not None and now >= expires_at else "valid"


class _Confirmation(Struct):
    key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Payload(Struct):
    iat: int
    jti: str
    sub: _Name
    instances: _Name
    scope: str
    exp: int | None = None
    cnf: _Confirmation | None = None


class TokenAuthority:
    """Issues and verifies the tokens of one server; for one thread."""

    def __init__(self, folder: Path, *, create: bool = True, patience: float = PATIENCE) -> None:
        """`folder` has the registry, which is made, with a first secret, if there is none and
        `create` is set; `patience` is the registry's.

        Raises:
            ConfigError: PyJWT is not installed.
            KeyFileError: the registry cannot be used, or others can read it.
        """
        self._jwt = _import_jwt()
        self._codec = self._jwt.PyJWT(options={"enforce_minimum_key_length": True})
        self._registry = Registry(folder, create=create, patience=patience)
        self._secrets: dict[str, bytes] = {}
        """by kid, the current one last"""
        self._tokens: dict[str, IssuedToken] = {}
        self._load()
        if not self._secrets:
            self.rotate(0.0)

    def close(self) -> None:
        self._registry.close()

    # -- issuing ----------------------------------------------------------------------------------

    def issue(
        self,
        application: str,
        *,
        now: float,
        instances: str = "*",
        scopes: Iterable[Scope] = ("ingest",),
        key: bytes | None = None,
        lifetime: float | None = DEFAULT_LIFETIME,
    ) -> tuple[str, TokenClaims]:
        """A new token, which is kept nowhere, and what it allows. A `lifetime` (in s) of None is
        for ever.

        Raises:
            ConfigError: an argument that cannot be used.
            KeyFileError: the registry cannot be written.
        """
        wanted = frozenset(scopes)
        _check_request(application, instances, wanted, key, lifetime)
        kid = next(reversed(self._secrets))
        issued_at = int(now)
        claims = TokenClaims(
            jti=secrets.token_hex(8),
            application=application,
            instances=instances,
            scopes=wanted,
            key=key,
            issued_at=issued_at,
            expires_at=None if lifetime is None else issued_at + max(1, int(lifetime)),
            kid=kid,
        )
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM token WHERE expires_at < ?", (now - FORGOTTEN_AFTER,))
            if connection.execute("SELECT count(*) FROM token").fetchone()[0] >= MAX_TOKENS:
                raise ConfigError(
                    f"{MAX_TOKENS} tokens are issued and none of them has expired long ago: "
                    "move the registry away and begin anew"
                )
            _insert(connection, claims)
        self._load()
        return self._sign(claims), claims

    def rotate(self, now: float) -> str:
        """Sign tokens with a new secret from now on; its kid. Earlier ones stay valid.

        Secrets are removed when all the tokens that they signed are revoked or expired.
        """
        kid = secrets.token_hex(4)
        with self._registry.transaction() as connection:
            connection.execute(
                "DELETE FROM token WHERE revoked_at IS NOT NULL OR expires_at < ?", (now - LEEWAY,)
            )
            connection.execute("DELETE FROM secret WHERE kid NOT IN (SELECT kid FROM token)")
            last = connection.execute("SELECT max(created_at) FROM secret").fetchone()[0]
            # Strictly later than all others, whatever the clock says: the latest is the current.
            created_at = int(now) if last is None else max(int(now), last + 1)
            secret = secrets.token_bytes(SECRET_SIZE)
            connection.execute("INSERT INTO secret VALUES (?, ?, ?)", (kid, secret, created_at))
        self._load()
        return kid

    def revoke(self, jti: str, now: float) -> bool:
        """Make a token useless for good; False if there is none that could be.

        Raises:
            KeyFileError: the registry cannot be written.
        """
        with self._registry.transaction() as connection:
            changed = connection.execute(
                "UPDATE token SET revoked_at = ? WHERE jti = ? AND revoked_at IS NULL",
                (int(now), jti),
            ).rowcount
        self._load()
        return changed > 0

    def list(self) -> list[IssuedToken]:
        """All that is remembered, the latest first."""
        return sorted(
            self._tokens.values(), key=lambda token: (-token.claims.issued_at, token.claims.jti)
        )

    # -- verifying --------------------------------------------------------------------------------

    def verify(
        self,
        token: str,
        now: float,
        *,
        scope: Scope,
        application: str | None = None,
        instance: str | None = None,
        key: bytes | None = None,
    ) -> TokenClaims:
        """What a token allows its sender, who says to be an instance of an application.

        `application` and `instance` are None if the sender has named none; `key` is the public key
        that the sender has proved, None if it has none.

        Raises:
            TokenError: it allows nothing of the kind; the text may be told to the sender.
        """
        try:
            claims = self._verified(token)
            known = claims.jti in self._tokens
        except TokenError:
            # Another process may have issued it a moment ago.
            if not self._take_notice():
                raise
            claims, known = self._verified(token), True
        if not known:
            self._take_notice()
        refusal = self.refuses(claims, now)
        if refusal is not None:
            raise refusal
        if claims.issued_at > now + LEEWAY:
            raise TokenError("TOKEN_INVALID", "the token is from the future: check the clocks")
        if scope not in claims.scopes:
            raise TokenError("TOKEN_MISMATCH", f"the token has no scope {scope}")
        if claims.application != EVERY_APPLICATION and application not in (
            None,
            claims.application,
        ):
            raise TokenError("TOKEN_MISMATCH", "the token is for another application")
        if instance is not None and not claims.allows_instance(instance):
            raise TokenError("TOKEN_MISMATCH", "the token is for other instances")
        if claims.key is not None and claims.key != key:
            raise TokenError("TOKEN_MISMATCH", "the token is for another key pair")
        return claims

    def refuses(self, claims: TokenClaims, now: float) -> TokenError | None:
        """Why a token that was verified is not to be used any more; for connections that last."""
        issued = self._tokens.get(claims.jti)
        state = "revoked" if issued is None else issued.state(now - LEEWAY)
        if state == "revoked":
            return TokenError("TOKEN_REVOKED", "the token is revoked: ask for another one")
        if state == "expired":
            return TokenError("TOKEN_EXPIRED", "the token has expired: ask for another one")
        return None

    def reload(self) -> bool:
        """Take in what other processes have changed; whether there was anything.

        Raises:
            KeyFileError: the registry is gone or damaged; what was known goes on to hold.
        """
        if not self._registry.changed():
            return False
        self._load()
        return True

    def _take_notice(self) -> bool:
        try:
            return self.reload()
        except KeyFileError:
            return False  # told by who reloads now and then

    def _verified(self, token: str) -> TokenClaims:
        """The claims of a token that we signed, whether they hold or not."""
        jwt, invalid = self._jwt, TokenError("TOKEN_INVALID", "the token is not one of this server")
        if not isinstance(token, str) or len(token) > MAX_TOKEN:
            raise TokenError("TOKEN_INVALID", f"a token has at most {MAX_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            secret = self._secrets.get(kid) if isinstance(kid, str) else None
            if secret is None or header.get("typ") != TYPE:
                raise invalid
            # Times are judged by `refuses`, which does the same for connections that last.
            payload: dict[str, Any] = self._codec.decode(
                token,
                secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={
                    "require": ["iss", "aud", "iat", "jti", "sub"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            return _claims_untrusted(payload, kid)
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError):  # also msgspec's
            raise invalid from None

    def _sign(self, claims: TokenClaims) -> str:
        payload: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": claims.issued_at,
            "jti": claims.jti,
            "sub": claims.application,
            "instances": claims.instances,
            "scope": " ".join(sorted(claims.scopes)),
        }
        if claims.expires_at is not None:
            payload["exp"] = claims.expires_at
        if claims.key is not None:
            payload["cnf"] = {"key": claims.key.hex()}
        headers = {"typ": TYPE, "kid": claims.kid}
        token: str = self._codec.encode(
            payload, self._secrets[claims.kid], algorithm=ALGORITHM, headers=headers
        )
        return token

    def _load(self) -> None:
        read = self._registry.read
        self._secrets = {
            row["kid"]: row["secret"] for row in read("SELECT * FROM secret ORDER BY created_at")
        }
        if any(len(secret) < SECRET_SIZE for secret in self._secrets.values()):
            raise KeyFileError(f"{self._registry.path} has a secret of less than 256 bits")
        self._tokens = {row["jti"]: _issued(row) for row in read("SELECT * FROM token")}


def _import_jwt() -> ModuleType:
    try:
        import jwt
    except ImportError:
        raise ConfigError(
            "application tokens need PyJWT: pip install 'hyperlog-p2p[server]'"
        ) from None
    return jwt


def _check_request(
    application: str,
    instances: str,
    scopes: frozenset[Scope],
    key: bytes | None,
    lifetime: float | None,
) -> None:
    for what, name in (("an application", application), ("a pattern of instances", instances)):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ConfigError(f"{what} is named by 1 to {MAX_NAME} printable characters")
    unknown = scopes - set(SCOPES)
    if unknown or not scopes:
        raise ConfigError(f"the scopes of a token are of {', '.join(SCOPES)}; at least one")
    if application == EVERY_APPLICATION and scopes != {"read"}:
        raise ConfigError("a token for every application can only be for reading")
    if key is not None and len(key) != 32:
        raise ConfigError(f"a public key has 32 bytes, got {len(key)}")
    if lifetime is not None and not 0 < lifetime <= MAX_LIFETIME:
        raise ConfigError("a token lives for up to 100 years, or for ever if that is asked for")


def _claims_untrusted(payload: dict[str, Any], kid: str) -> TokenClaims:
    """The claims of a payload with a good signature; ValueError if they are odd."""
    found = msgspec.convert(payload, _Payload)
    return TokenClaims(
        jti=found.jti,
        application=found.sub,
        instances=found.instances,
        scopes=frozenset(scope for scope in SCOPES if scope in found.scope.split()),
        key=None if found.cnf is None else bytes.fromhex(found.cnf.key),
        issued_at=found.iat,
        expires_at=found.exp,
        kid=kid,
    )


def _insert(connection: sqlite3.Connection, claims: TokenClaims) -> None:
    connection.execute(
        "INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            claims.jti,
            claims.kid,
            claims.application,
            claims.instances,
            " ".join(sorted(claims.scopes)),
            claims.key,
            claims.issued_at,
            claims.expires_at,
        ),
    )


def _issued(row: sqlite3.Row) -> IssuedToken:
    claims = TokenClaims(
        jti=row["jti"],
        application=row["application"],
        instances=row["instances"],
        scopes=frozenset(row["scopes"].split()),
        key=row["key"],
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
        kid=row["kid"],
    )
    return IssuedToken(claims, row["revoked_at"])
