from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams.model.errors import ExpiredToken, InvalidToken, KeysUnavailable, SettingsError
from chat_streams.runtime import jwks
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import FAR, Authenticator, Identity, Rules, identity_of, mint

SECRET = "0123456789abcdef0123456789abcdef"
JWKS = "https://issuer.test/jwks"
LEEWAY_S = 30
NOW = 1_000_000_000.0
RULES = Rules(frozenset(), None, LEEWAY_S)

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JWT_SECRET", "JWT_SECRET_FILE", "JWKS_URL", "JWT_AUDIENCE", "JWT_ISSUER", "JWT_LEEWAY"):
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
    identity = await shared.identify(hs256(sub="alice@example.org", exp=exp))
    assert identity == Identity("alice@example.org", exp + LEEWAY_S)


async def test_a_minted_token_is_good(shared: Authenticator) -> None:
    before = time.time()
    user, expires, _ = await shared.identify(mint(SECRET, "alice", 60))
    assert user == "alice"
    assert before + 59 <= expires - LEEWAY_S <= time.time() + 60


@pytest.mark.parametrize("user", ["", "a b", "a\n", "x" * 129, "a/b"])
def test_no_token_is_minted_for_what_is_no_user(user: str) -> None:
    with pytest.raises(ValueError, match="no user id"):
        mint(SECRET, user, 60)


async def test_an_expired_token_is_refused(shared: Authenticator) -> None:
    await assert_refused(shared, hs256(exp=int(time.time()) - LEEWAY_S - 1), "expired")


@pytest.mark.parametrize("name", ["exp", "sub"])
async def test_a_token_without_a_claim_is_refused(shared: Authenticator, name: str) -> None:
    await assert_refused(shared, hs256(**{name: None}), name)


NO_TIMES = [True, False, "soon", "1e9", "", [], {}, float("nan"), float("inf"), 10**400, FAR + 1, 1.8e12]


@pytest.mark.parametrize("exp", NO_TIMES, ids=lambda value: repr(value)[:20])
async def test_an_expiry_that_is_no_time_is_refused(shared: Authenticator, exp: Any) -> None:
    await assert_refused(shared, hs256_of(claims(exp=exp)), "time in seconds")


@pytest.mark.parametrize("exp", ["1e400", "-1e400", "1E999", "1" + "0" * 5_000, "-0", "1e-400", "0.1e1", "NaN"])
async def test_any_number_of_json_is_understood_or_refused(shared: Authenticator, exp: str) -> None:
    payload = f'{{"sub":"alice","exp":{exp}}}'.encode()
    await assert_refused(shared, jwt.api_jws.encode(payload, SECRET, algorithm="HS256"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("alice"),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(max_size=3), value, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "roles", "jti"]), JSON))
def test_claims_of_any_kind_are_an_identity_or_a_refusal(found: dict[str, Any]) -> None:
    with suppress(InvalidToken):
        identity = identity_of(found, Rules(frozenset({"chat"}), None, LEEWAY_S), NOW)
        assert NOW < identity.expires <= FAR + LEEWAY_S


@given(st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6))
def test_a_token_holds_until_its_expiry_and_the_leeway_after_it(offset: float) -> None:
    exp = NOW + offset
    if exp + LEEWAY_S > NOW:
        identity = identity_of({"sub": "alice", "exp": exp}, RULES, NOW)
        assert identity.expires == exp + LEEWAY_S
    else:
        with pytest.raises(ExpiredToken):
            identity_of({"sub": "alice", "exp": exp}, RULES, NOW)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_that_begins_later_than_the_leeway_is_refused(name: str) -> None:
    good = {"sub": "alice", "exp": NOW + 60}
    assert identity_of(good | {name: NOW + LEEWAY_S}, RULES, NOW).user == "alice"
    for value in (NOW + LEEWAY_S + 1, *NO_TIMES):
        with pytest.raises(InvalidToken, match=name):
            identity_of(good | {name: value}, RULES, NOW)


AUDIENCES = [
    ("chat", True, False),
    (["chat"], True, False),
    (["other", "mobile"], True, False),
    ("other", False, False),
    (["other", 7, None], False, False),
    ([], False, False),
    ("", False, False),
    (None, False, False),
    ({"chat": True}, False, False),
    (7, False, False),
    ("chat,mobile", False, False),
]


@pytest.mark.parametrize(("audience", "set_", "unset"), AUDIENCES, ids=[str(a) for a, *_ in AUDIENCES])
def test_an_audience_has_to_be_ours(audience: Any, set_: bool, unset: bool) -> None:
    for wanted, good in ((frozenset({"chat", "mobile"}), set_), (frozenset[str](), unset)):
        found = {"sub": "alice", "exp": NOW + 60, "aud": audience}
        if good:
            assert identity_of(found, Rules(wanted, None, 0), NOW).user == "alice"
        else:
            with pytest.raises(InvalidToken, match="aud"):
                identity_of(found, Rules(wanted, None, 0), NOW)


def test_without_an_audience_a_token_is_good_only_where_none_is_wanted() -> None:
    found = {"sub": "alice", "exp": NOW + 60}
    assert identity_of(found, RULES, NOW).user == "alice"
    with pytest.raises(InvalidToken, match="CHAT_JWT_AUDIENCE"):
        identity_of(found, Rules(frozenset({"chat"}), None, 0), NOW)


@pytest.mark.parametrize("issuer", [None, "https://id.example/", "", 7, ["https://id.example"], {}])
def test_an_issuer_has_to_be_the_one_that_is_set(issuer: Any) -> None:
    found = {"sub": "alice", "exp": NOW + 60, "iss": issuer}
    assert identity_of(found, RULES, NOW).user == "alice"
    rules = Rules(frozenset(), "https://id.example", 0)
    with pytest.raises(InvalidToken, match="CHAT_JWT_ISSUER"):
        identity_of(found, rules, NOW)
    assert identity_of(found | {"iss": "https://id.example"}, rules, NOW).user == "alice"


async def test_what_is_wanted_of_a_token_is_set_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AUDIENCE": "chat, mobile", "ISSUER": "https://id.example", "LEEWAY": "0"}.items():
        monkeypatch.setenv(f"CHAT_JWT_{name}", value)
    authenticator = Authenticator(Settings(jwt_secret=SECRET))
    good = {"aud": ["mobile"], "iss": "https://id.example"}
    assert (await authenticator.identify(hs256(**good))).user == "alice"
    await assert_refused(authenticator, hs256(**good | {"aud": "web"}), "aud")
    await assert_refused(authenticator, hs256(**good | {"iss": "https://id.test"}), "iss")
    await assert_refused(authenticator, hs256(**good, exp=int(time.time()) - 1), "expired")


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


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b.c", "hello", "\u00e4.\u00e4.\u00e4", "\ud83d", "\udcff.a.b", "e30.e30.", "x" * 8_192]
)
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


@asynccontextmanager
async def issuer(monkeypatch: pytest.MonkeyPatch, *keys: dict[str, Any]) -> AsyncIterator[Authenticator]:
    """An authenticator that has fetched the keys of an issuer; without any, such as fetches nothing but errors."""
    monkeypatch.setattr(jwks, "WAIT_S", 0.2)

    async def fetch(url: str) -> bytes:
        assert url == JWKS
        if not keys:
            raise KeysUnavailable("it answers 500")
        return json.dumps({"keys": keys}).encode()

    authenticator = Authenticator(Settings(jwks_url=JWKS), fetch)
    running = asyncio.create_task(authenticator.run())
    try:
        yield authenticator
    finally:
        running.cancel()


KEYS = (jwk(KEY, "1"),)


async def test_a_token_of_the_issuer_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = int(time.time()) + 60
    async with issuer(monkeypatch, *KEYS) as authenticator:
        assert not authenticator.has_keys
        assert await authenticator.identify(es256(exp=exp)) == Identity("alice", exp + LEEWAY_S)
        assert authenticator.has_keys


async def test_forged_tokens_of_the_issuer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with issuer(monkeypatch, *KEYS) as authenticator:
        await assert_refused(authenticator, es256(OTHER_KEY))
        await assert_refused(authenticator, es256(kid="unknown"))
        await assert_refused(authenticator, es256(kid=None))
        await assert_refused(authenticator, es256(exp=int(time.time()) - LEEWAY_S - 1), "expired")
        await assert_refused(authenticator, es256(exp=None), "exp")
        await assert_refused(authenticator, es256(sub="a b"), "subject")
        algorithms: list[Any] = ["none", "HS256", "RS256", "ES384", None, 7, ["ES256"], {}]
        for alg in algorithms:
            await assert_refused(authenticator, unsigned({"alg": alg, "kid": "1"}, claims()))
        for kid in (None, 1, ["1"], {"1": 1}, True):
            await assert_refused(authenticator, unsigned({"alg": "ES256", "kid": kid}, claims()))


async def test_a_token_brings_no_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"kid": "1", "jwk": jwk(OTHER_KEY, "1"), "jku": "https://evil.test/jwks", "x5u": "https://evil.test/x5u"}
    async with issuer(monkeypatch, *KEYS) as authenticator:
        await assert_refused(authenticator, jwt.encode(claims(), OTHER_KEY, algorithm="ES256", headers=header))


async def test_the_public_key_is_no_shared_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    # The classic forgery: HS256 with the issuer's public key, which everyone can fetch, as the secret.
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256", "kid": "1"}
    signing_input = unsigned(header, claims()).rsplit(".", 1)[0]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signing_input.encode(), public)
    forged = f"{signing_input}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    async with issuer(monkeypatch, *KEYS) as authenticator:
        await assert_refused(authenticator, forged)


async def test_a_shared_secret_does_not_count_beside_an_issuer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_JWT_SECRET", SECRET)
    async with issuer(monkeypatch, *KEYS) as authenticator:
        await assert_refused(
            authenticator, jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "1"}), "algorithm"
        )


async def test_without_keys_of_the_issuer_a_token_can_neither_be_taken_nor_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with issuer(monkeypatch) as authenticator:
        with pytest.raises(KeysUnavailable):
            await authenticator.identify(es256())
        await assert_refused(authenticator, "no.to.ken")


async def test_two_keys_of_one_id_are_both_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    third = ec.generate_private_key(ec.SECP256R1())
    async with issuer(monkeypatch, jwk(KEY, "1"), jwk(OTHER_KEY, "1")) as authenticator:
        for key in (KEY, OTHER_KEY):
            assert (await authenticator.identify(es256(key))).user == "alice"
        await assert_refused(authenticator, es256(third), "ignature")


@settings(max_examples=40)
@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=10))
async def test_a_token_of_any_bytes_is_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload, signature))
    await assert_refused(Authenticator(Settings(jwt_secret=SECRET)), ".".join(parts))


@pytest.mark.parametrize(
    "header",
    [b"[" * 6_000, b"[]", b"7", b"null", b'{"alg":"HS256","crit":["x"],"x":1}', b'{"alg":"HS256","b64":false}'],
    ids=lambda header: header[:20],
)
async def test_a_header_of_any_json_is_refused(shared: Authenticator, header: bytes) -> None:
    first = base64.urlsafe_b64encode(header).rstrip(b"=").decode()
    await assert_refused(shared, f"{first}.{hs256().partition('.')[2]}")


async def test_roles_come_from_the_token_and_nowhere_else(shared: Authenticator) -> None:
    assert (await shared.identify(hs256())).roles == frozenset()
    assert (await shared.identify(mint(SECRET, "alice", 60, ["operator"]))).roles == {"operator"}
    for wrong in ("operator", ["operator", 1], {"operator": True}):
        await assert_refused(shared, hs256(roles=wrong), "roles")
