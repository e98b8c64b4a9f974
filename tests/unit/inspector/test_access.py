from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from chat_streams.inspector.access import Access, AccessDenied, RoleMissing, Viewer, same_origin
from chat_streams.model.errors import KeysUnavailable
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import Authenticator, mint

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def access() -> Access:
    return Access(Authenticator(Settings(jwt_secret=SECRET)))


@pytest.mark.parametrize(
    ("roles", "operator", "bodies"),
    [
        (["viewer"], False, False),
        (["operator"], True, False),
        (["viewer", "bodies"], False, True),
        (["bodies", "operator", "other"], True, True),
    ],
)
async def test_a_viewer_or_operator_may_look(access: Access, roles: list[str], operator: bool, bodies: bool) -> None:
    found = await access.of_token(mint(SECRET, "eve", 60, roles))
    assert found == Viewer("eve", found.expires, operator, bodies)


@pytest.mark.parametrize("roles", [[], ["bodies"], ["Viewer"], ["viewer "], ["view", "admin", ""]])
async def test_the_token_of_anybody_else_opens_nothing(access: Access, roles: list[str]) -> None:
    with pytest.raises(RoleMissing, match="viewer"):
        await access.of_token(mint(SECRET, "eve", 60, roles))


@pytest.mark.parametrize("token", ["x", "x" * 5_000, "\udcff", mint("y" * 32, "eve", 60, ["operator"])])
async def test_what_is_no_token_of_ours_is_refused(access: Access, token: str) -> None:
    with pytest.raises(AccessDenied) as refused:
        await access.of_token(token)
    assert not isinstance(refused.value, RoleMissing)


async def test_a_token_that_cannot_be_checked_is_not_refused() -> None:
    async def identify(_: str) -> Any:
        raise KeysUnavailable("it answers 500")

    with pytest.raises(KeysUnavailable):
        await Access(SimpleNamespace(identify=identify)).of_token("x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"Origin": "http://inspector.test"}, True),
        ({"Origin": "http://elsewhere.test"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://elsewhere.test", "Authorization": "Bearer x"}, False),
        ({"Authorization": "Bearer x"}, True),
        ({}, False),
    ],
)
def test_a_form_comes_from_a_page_of_this_site_or_from_a_program(headers: dict[str, str], same: bool) -> None:
    request = make_mocked_request("POST", "/redrive", headers={"Host": "inspector.test"} | headers)
    assert same_origin(request) == same
