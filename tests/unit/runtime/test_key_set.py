from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams.model.errors import InvalidToken, KeysUnavailable
from chat_streams.runtime.key_set import BUDGET_S, KEEP_S, MAX_KEYS, RENEW_S, UNKNOWN_FETCHES, Keys, KeySet, parse

EC = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
OTHER = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
P384 = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
ED = jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)
ED448 = jwt.algorithms.OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True)
PRIVATE = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)


def rsa_key(bits: int) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()
    return jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)


RSA = rsa_key(2048)


def parsed(*keys: Any) -> Keys:
    return parse(json.dumps({"keys": keys}).encode())


def known(*ids: str) -> Keys:
    return parsed(*(EC | {"kid": name} for name in ids))


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(EC, "ES256"), (RSA, "RS256"), (ED, "EdDSA"), (ED448, "EdDSA")],
    ids=["EC", "RSA", "Ed25519", "Ed448"],
)
def test_a_key_is_for_the_one_algorithm_of_its_type(key: dict[str, Any], algorithm: str) -> None:
    for more in ({}, {"alg": algorithm}, {"use": "sig"}, {"key_ops": ["verify"]}, {"x5t": "…"}, {"use": None}):
        assert list(parsed(key | {"kid": "1"} | more)) == [("1", algorithm)]
    wrong: Any
    for wrong in ("HS256", "none", "RS512", "PS256", "ES384", "RSA-OAEP", "", 7, ["ES256"], {}):
        assert parsed(key | {"kid": "1", "alg": wrong}) == {}


NO_USE: dict[str, Any] = {
    "without an id": EC,
    "an id that is a number": EC | {"kid": 7},
    "for encryption": EC | {"kid": "1", "use": "enc"},
    "a use that is a list": EC | {"kid": "1", "use": ["sig"]},
    "for signing": EC | {"kid": "1", "key_ops": ["sign"]},
    "operations that are a text": EC | {"kid": "1", "key_ops": "verify"},
    "of another curve than it says": EC | {"kid": "1", "crv": "P-384"},
    "a curve that is a list": EC | {"kid": "1", "crv": ["P-256"]},
    "no point of the curve": EC | {"kid": "1", "x": EC["y"]},
    "a coordinate that is a number": EC | {"kid": "1", "x": 7},
    "a coordinate that is no base64": EC | {"kid": "1", "x": "\u00e4"},
    "of another type than it says": EC | {"kid": "1", "kty": "RSA"},
    "RSA without a modulus": {"kid": "1", "kty": "RSA", "n": "", "e": ""},
    "RSA with the exponent 0": {"kid": "1", "kty": "RSA", "n": RSA["n"], "e": "AA"},
    "RSA of 1,024 bits": rsa_key(1024) | {"kid": "1"},
    "Ed25519 of one byte": {"kid": "1", "kty": "OKP", "crv": "Ed25519", "x": "AA"},
    "a shared key": {"kid": "1", "kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    "a private key": PRIVATE | {"kid": "1"},
    "of a curve without an algorithm here": P384 | {"kid": "1"},
    "of an unknown type": {"kid": "1", "kty": "nonsense"},
    "of no type": {"kid": "1"},
    "null": None,
    "a text": "key",
    "a number": 7,
    "a list": [],
}


@pytest.mark.parametrize("key", NO_USE.values(), ids=NO_USE)
def test_a_key_of_no_use_is_left_out_and_the_others_count(key: Any) -> None:
    assert list(parsed(key, EC | {"kid": "good"}, key)) == [("good", "ES256")]


def test_one_id_may_stand_for_several_keys() -> None:
    found = parsed(EC | {"kid": "1"}, RSA | {"kid": "1"}, OTHER | {"kid": "1"})
    assert {name: len(keys) for name, keys in found.items()} == {("1", "ES256"): 2, ("1", "RS256"): 1}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<!DOCTYPE html><html>maintenance</html>",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"keys":' + b"[" * 100_000,
        b"1" * 10_000,
        b"null",
        b"[]",
        b"{}",
        b'{"keys":null}',
        b'{"keys":{}}',
        b'{"keys":"1"}',
        b'{"error":"server_error"}',
        json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(),
    ],
    ids=lambda answer: f"{answer[:20]!r}",
)
def test_another_answer_is_no_key_set(answer: bytes) -> None:
    with pytest.raises(KeysUnavailable, match="the answer"):
        parse(answer)


VALUES = (
    st.none() | st.text(max_size=5) | st.integers() | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB"])
)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(["kid", "kty", "crv", "n", "e", "x", "y", "alg", "use"]), VALUES)))
def test_no_answer_is_a_failure(keys: list[dict[str, Any]]) -> None:
    assert all(isinstance(name, str) for name, _ in parsed(*keys))


# What counts, and when it is fetched


class Fetches:
    """A key set, its time, and what an identity provider has."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.set = KeySet(self.now)

    def fetch(self, *ids: str, takes: float = 0.0) -> None:
        assert self.set.due <= self.now
        self.set.begin(self.now)
        self.now += takes
        self.set.succeed(known(*ids))

    def fail(self) -> None:
        self.set.begin(self.now)
        self.set.fail(self.now, 1.0)

    def find(self, name: str, asked: float | None = None) -> bool:
        """Return whether there is the key, False for one to wait for."""
        return self.set.find(name, "ES256", self.now if asked is None else asked, self.now) is not None


def test_the_keys_are_fetched_at_once_and_before_five_minutes_are_over() -> None:
    it = Fetches()
    it.fetch("1", takes=4.9)
    assert it.set.due == 1_000 + RENEW_S
    # Asked at the end of the first fetch, the key that was withdrawn meanwhile is good until the answer to the second.
    assert RENEW_S + 5 <= 300


def test_a_key_that_left_the_set_is_refused() -> None:
    it = Fetches()
    it.fetch("1", "2")
    it.now += RENEW_S
    assert it.find("1")
    it.fetch("2")
    asked = it.now
    assert not it.find("1", asked)
    it.now += 1
    it.fetch("2")
    with pytest.raises(InvalidToken):
        it.find("1", asked)


def test_an_unknown_key_is_fetched_at_once_and_refused_only_by_a_set_that_is_newer_than_the_token() -> None:
    it = Fetches()
    it.set.begin(it.now)
    it.now += 1
    # A fetch that is under way may have been answered already.
    asked = it.now
    assert not it.find("2", asked)
    it.set.succeed(known("1"))
    assert not it.find("2", asked)
    assert it.set.due <= it.now
    it.now += 1
    it.fetch("1")
    with pytest.raises(InvalidToken):
        it.find("2", asked)


def test_a_new_key_is_found_by_the_fetch_that_it_asked_for() -> None:
    it = Fetches()
    it.fetch("1")
    asked = it.now = it.now + 10
    assert not it.find("2", asked)
    it.fetch("1", "2", takes=2)
    assert it.find("2", asked)


def test_many_unknown_keys_are_one_fetch() -> None:
    it = Fetches()
    it.fetch("1")
    it.now += 1
    assert not any(it.find(f"unknown-{n}") for n in range(1_000))
    asked = it.now
    it.now += 1
    it.fetch("1")
    assert it.set.due > it.now
    with pytest.raises(InvalidToken):
        it.find("unknown-7", asked)


def test_the_budget_for_unknown_keys_is_spent_without_refusing_one_for_good() -> None:
    it = Fetches()
    it.fetch("1")
    for _ in range(UNKNOWN_FETCHES):
        it.now += 1
        assert not it.find("unknown")
        it.fetch("1")
    it.now += 1
    with pytest.raises(KeysUnavailable, match="within 60 s"):
        it.find("unknown")
    assert it.find("1"), "known keys are not concerned"
    assert it.set.due > it.now
    it.now += BUDGET_S - UNKNOWN_FETCHES
    assert not it.find("unknown"), "the first of them is a minute old"


def test_known_keys_count_for_an_hour_while_the_provider_is_ill() -> None:
    it = Fetches()
    it.fetch("1")
    it.now += KEEP_S - 1
    it.fail()
    assert it.find("1")
    assert it.set.are_current(it.now)
    with pytest.raises(KeysUnavailable):
        it.find("2", asked=it.now)
    it.now += 1
    assert not it.set.are_current(it.now)
    assert not it.find("1"), "a fetch might still succeed"
    it.fail()
    with pytest.raises(KeysUnavailable):
        it.find("1", asked=it.now)
    it.now = it.set.due
    it.fetch("1")
    assert it.find("1")


def test_a_failed_fetch_is_tried_again_with_a_growing_pause() -> None:
    it = Fetches()
    pauses = []
    for _ in range(20):
        it.fail()
        pauses.append(it.set.due - it.now)
        it.now = it.set.due
    assert pauses[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert pauses[-1] == 30
    it.fetch("1")
    it.now = it.set.due
    it.fail()
    assert it.set.due - it.now == 1


def test_an_empty_set_lets_nobody_in_and_refuses_nobody_for_good() -> None:
    it = Fetches()
    it.fetch("1")
    it.now = it.set.due
    it.fetch()
    assert not it.set.are_current(it.now)
    for name in ("1", "2"):
        with pytest.raises(KeysUnavailable, match="empty"):
            it.find(name, asked=it.now - 1)


def test_a_known_key_of_another_algorithm_costs_no_fetch() -> None:
    it = Fetches()
    it.fetch("1")
    it.now += 1
    with pytest.raises(InvalidToken, match="algorithm"):
        it.set.find("1", "RS256", it.now, it.now)
    assert it.set.due > it.now


def test_the_age_of_the_keys_is_that_of_those_in_use() -> None:
    it = Fetches()
    it.now += 7
    assert it.set.age(it.now) == 7
    it.fetch("1", takes=1)
    assert it.set.age(it.now) == 1
    it.now += 5
    it.fail()
    assert it.set.age(it.now) == 6


IDS = st.sampled_from(["1", "2", "3"])
STEPS = st.lists(
    st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 100.0, 1_000.0]))
    | st.tuples(st.just("ask"), IDS)
    | st.tuples(st.just("answer"), st.frozensets(IDS))
    | st.tuples(st.just("fail"), st.none()),
    max_size=120,
)


@given(STEPS)
def test_whatever_happens_no_key_counts_too_long_and_none_is_refused_unseen(steps: list[tuple[str, Any]]) -> None:
    it = Fetches()
    newest: tuple[float, frozenset[str]] = (-KEEP_S, frozenset())
    asked_at: dict[str, float] = {}
    extra: list[float] = []
    for step, value in steps:
        if step == "wait":
            it.now += value
        elif step in ("answer", "fail"):
            if it.set.due > it.now:
                continue
            if it.set.due < 0:
                extra.append(it.now)
            it.set.begin(it.now)
            if step == "answer":
                newest = it.now, value
                it.set.succeed(known(*value))
            else:
                it.set.fail(it.now, 0.5)
                assert it.now < it.set.due <= it.now + 30
            assert it.set.due <= it.now + RENEW_S
        else:
            asked = asked_at.setdefault(value, it.now)
            try:
                found = it.find(value, asked)
            except InvalidToken:
                assert newest[0] > asked
                assert value not in newest[1]
            except KeysUnavailable:
                pass
            else:
                assert not found or (value in newest[1] and it.now - newest[0] < KEEP_S)
                if not found:
                    continue
            del asked_at[value]
    assert all(b - a >= BUDGET_S for a, b in zip(extra, extra[UNKNOWN_FETCHES:], strict=False))
