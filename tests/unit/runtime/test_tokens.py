from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chat_streams.model.errors import InvalidToken, SettingsError
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import LEEWAY_S, Authenticator, Identity, mint

SECRET = "0123456789abcdef0123456789abcdef"
JWKS = "https://issuer.test/jwks"

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JWT_SECRET", "JWT_SECRET_FILE", "JWKS_URL"):
        monkeypatch.delenv(f"CHAT_{name}", raising=False)


@pytest.fixture
def shared() -> Authenticator:
    return Authenticator(Settings(jwt_secret=SECRET))


def claims(**changes: Any) -> dict[str, Any]:
    found = {"sub": "alice", "exp": int(time.time()) + 60} | changes
    return {name: value for name, value in found.items() if value is not None}


def hs256(**changes: Any) -> str:
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")


def hs256_of(payload: dict[str, Any]) -> str:
    """Return any payload, signed with the right key."""
    return jwt.api_jws.encode(json.dumps(payload).encode(), SECRET, algorithm="HS256")


def unsigned(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    """Return a token put together by hand: ``jwt.encode`` does not make wrong ones."""
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def assert_refused(authenticator: Authenticator, token: str, why: str | None = None) -> None:
    with pytest.raises(InvalidToken, match=why) as caught:
        await authenticator.identify(token)
    assert all(part not in str(caught.value) for part in token.split(".") if len(part) > 10), "it shows the token"


async def test_a_good_token_says_who_and_until_when(shared: Authenticator) -> None:
    exp = int(time.time()) + 60
    assert await shared.identify(hs256(sub="alice@example.org", exp=exp)) == Identity("alice@example.org", exp)


async def test_a_minted_token_is_good(shared: Authenticator) -> None:
    before = time.time()
    user, expires, _ = await shared.identify(mint(SECRET, "alice", 60))
    assert user == "alice"
    assert before + 59 <= expires <= time.time() + 60


@pytest.mark.parametrize("user", ["", "a b", "a\n", "x" * 129, "a/b"])
def test_no_token_is_minted_for_what_is_no_user(user: str) -> None:
    with pytest.raises(ValueError, match="no user id"):
        mint(SECRET, user, 60)


async def test_an_expired_token_is_refused(shared: Authenticator) -> None:
    await assert_refused(shared, hs256(exp=int(time.time()) - LEEWAY_S - 1), "expired")


@pytest.mark.parametrize("name", ["exp", "sub"])
async def test_a_token_without_a_claim_is_refused(shared: Authenticator, name: str) -> None:
    await assert_refused(shared, hs256(**{name: None}), name)


@pytest.mark.parametrize("exp", ["soon", "1e9", [], {}])
async def test_an_expiry_that_is_no_time_is_refused(shared: Authenticator, exp: Any) -> None:
    await assert_refused(shared, hs256_of(claims(exp=exp)))


async def test_a_token_that_begins_to_hold_later_is_refused(shared: Authenticator) -> None:
    await assert_refused(shared, hs256(nbf=int(time.time()) + 1_000))


@pytest.mark.parametrize("sub", ["", "a b", "a\n", "alice\0", "x" * 129, "\u00e4", "a/b", "{u}"])
async def test_a_subject_outside_the_grammar_is_refused(shared: Authenticator, sub: str) -> None:
    await assert_refused(shared, hs256(sub=sub), "subject")


@pytest.mark.parametrize("sub", [7, ["alice"], {"a": 1}])
async def test_a_subject_that_is_no_text_is_refused(shared: Authenticator, sub: Any) -> None:
    await assert_refused(shared, hs256_of(claims(sub=sub)))


async def test_another_key_is_refused(shared: Authenticator) -> None:
    await assert_refused(shared, jwt.encode(claims(), SECRET[::-1], algorithm="HS256"), "ignature")


async def test_a_changed_payload_is_refused(shared: Authenticator) -> None:
    header, _, signature = hs256().split(".")
    payload = hs256(sub="bob").split(".")[1]
    await assert_refused(shared, f"{header}.{payload}.{signature}", "ignature")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None])
async def test_an_unsigned_token_is_refused(shared: Authenticator, alg: str | None) -> None:
    await assert_refused(shared, unsigned({"alg": alg, "typ": "JWT"}, claims()))
    signature = base64.urlsafe_b64decode(hs256().split(".")[2] + "=")
    await assert_refused(shared, unsigned({"alg": alg, "typ": "JWT"}, claims(), signature))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_another_algorithm_with_the_right_key_is_refused(shared: Authenticator, algorithm: str) -> None:
    await assert_refused(shared, jwt.encode(claims(), SECRET, algorithm=algorithm))


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "hello", "\u00e4.\u00e4.\u00e4", "e30.e30.", "x" * 8_192])
async def test_what_is_no_token_is_refused(shared: Authenticator, token: str) -> None:
    await assert_refused(shared, token)


@pytest.mark.parametrize("secret", ["short", SECRET[:31]])
def test_a_short_key_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(SettingsError, match="32 bytes"):
        Authenticator(Settings(jwt_secret=secret))


def test_no_key_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="no key"):
        Authenticator(Settings())


# Keys of an issuer


def es256(key: ec.EllipticCurvePrivateKey = KEY, kid: str | None = "1", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm="ES256", headers={"kid": kid} if kid else None)


def jwk(key: ec.EllipticCurvePrivateKey, kid: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return found | {"kid": kid, "use": "sig", "alg": "ES256"}


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Authenticator]:
    def make(fetch: Callable[[], Any] = lambda: {"keys": [jwk(KEY, "1")]}) -> Authenticator:
        monkeypatch.setattr(jwt.PyJWKClient, "fetch_data", lambda _: fetch())
        return Authenticator(Settings(jwks_url=JWKS))

    return make


async def test_a_token_of_the_issuer_is_good(issuer: Callable[..., Authenticator]) -> None:
    exp = int(time.time()) + 60
    assert await issuer().identify(es256(exp=exp)) == Identity("alice", exp)


async def test_a_key_of_the_issuer_that_is_newer_than_the_gateway_is_found(
    issuer: Callable[..., Authenticator],
) -> None:
    keys = [jwk(KEY, "1")]
    authenticator = issuer(lambda: {"keys": list(keys)})
    await authenticator.identify(es256())
    keys.append(jwk(OTHER_KEY, "2"))
    assert (await authenticator.identify(es256(OTHER_KEY, "2"))).user == "alice"


async def test_forged_tokens_of_the_issuer_are_refused(issuer: Callable[..., Authenticator]) -> None:
    authenticator = issuer()
    await assert_refused(authenticator, es256(OTHER_KEY))
    await assert_refused(authenticator, es256(kid="unknown"))
    await assert_refused(authenticator, es256(kid=None))
    await assert_refused(authenticator, es256(exp=int(time.time()) - LEEWAY_S - 1), "expired")
    await assert_refused(authenticator, es256(exp=None), "exp")
    await assert_refused(authenticator, es256(sub="a b"), "subject")
    await assert_refused(authenticator, unsigned({"alg": "none", "kid": "1"}, claims()))


async def test_the_public_key_is_no_shared_secret(issuer: Callable[..., Authenticator]) -> None:
    # The classic forgery: HS256 with the issuer's public key, which everyone can fetch, as the secret.
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256", "kid": "1"}
    signing_input = unsigned(header, claims()).rsplit(".", 1)[0]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signing_input.encode(), public)
    forged = f"{signing_input}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    await assert_refused(issuer(), forged)


async def test_a_shared_secret_does_not_count_beside_an_issuer(
    issuer: Callable[..., Authenticator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_JWT_SECRET", SECRET)
    await assert_refused(issuer(), jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "1"}))


@pytest.mark.parametrize("answer", [{}, {"keys": []}, {"keys": [{"kty": "nonsense"}]}, [], None])
async def test_an_issuer_without_usable_keys_lets_nobody_in(issuer: Callable[..., Authenticator], answer: Any) -> None:
    with pytest.raises(InvalidToken):
        await issuer(lambda: answer).identify(es256())


async def test_roles_come_from_the_token_and_nowhere_else(shared: Authenticator) -> None:
    assert (await shared.identify(hs256())).roles == frozenset()
    assert (await shared.identify(mint(SECRET, "alice", 60, ["operator"]))).roles == {"operator"}
    for wrong in ("operator", ["operator", 1], {"operator": True}):
        await assert_refused(shared, hs256(roles=wrong), "roles")
