"""Who a request is from: what the token in its Authorization header allows.

Spec: RFC 6750 section 2.1, and no other way of that document.
"""

from __future__ import annotations

import time
from typing import Final

from starlette.requests import HTTPConnection

from hyperlog.errors import TokenError
from hyperlog.tokens import EVERY_APPLICATION, Scope, TokenAuthority, TokenClaims
from hyperlog.web.problems import Problem
from hyperlog.web.state import service_of

__all__ = [
    "bearer_token",
    "claims_of",
    "readable_bucket",
    "token_problem",
    "tokens_of",
]

MAX_AUTHORIZATION: Final = 4200  # characters of the header; a token has at most 4096
_STATUS: Final = {"TOKEN_MISMATCH": 403}


def tokens_of(request: HTTPConnection) -> TokenAuthority:
    tokens = service_of(request).tokens
    assert tokens is not None, "a server that serves HTTP opens its tokens"
    return tokens


def bearer_token(request: HTTPConnection) -> str | None:
    """The token that came along; None if there is no Authorization header.

    Raises:
        Problem: there are several, or one of another kind.
    """
    given = request.headers.getlist("authorization")
    if not given:
        return None
    scheme, _, token = given[0].partition(" ")
    token = token.strip()
    if len(given) > 1 or scheme.lower() != "bearer" or not token:
        raise token_problem(
            TokenError("TOKEN_INVALID", "write one header of the form Authorization: Bearer TOKEN")
        )
    if len(given[0]) > MAX_AUTHORIZATION:
        raise token_problem(TokenError("TOKEN_INVALID", "the token is too long"))
    return token


def claims_of(request: HTTPConnection, scope: Scope) -> TokenClaims:
    """What the token of a request allows, which has to be of this scope.

    Raises:
        Problem: it allows nothing of the kind, or there is none.
    """
    token = bearer_token(request)
    if token is None:
        raise token_problem(
            TokenError(
                "TOKEN_REQUIRED",
                f"this needs an application token of scope {scope}, in a header "
                "Authorization: Bearer; hyperlog token issue makes one",
            )
        )
    try:
        return tokens_of(request).verify(token, time.time(), scope=scope)
    except TokenError as error:
        raise token_problem(error) from None


def readable_bucket(request: HTTPConnection, asked: str | None = None) -> str | None:
    """The only bucket that an answer may tell of; None for all of them.

    Raises:
        Problem: the sender may not read, or not in the bucket that was asked for.
    """
    application = claims_of(request, "read").application
    if application == EVERY_APPLICATION:
        return asked
    if asked not in (None, application):
        raise token_problem(
            TokenError("TOKEN_MISMATCH", "the token is for the records of another application")
        )
    return application


def token_problem(error: TokenError) -> Problem:
    """The answer to who has no token that helps."""
    status = _STATUS.get(error.refusal, 401)
    headers = {"WWW-Authenticate": 'Bearer realm="hyperlog"'} if status == 401 else {}
    return Problem(status, str(error), code=error.refusal, field="Authorization", headers=headers)
