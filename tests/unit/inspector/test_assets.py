"""The inspector's static files: their types, their version, and how long a browser keeps them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from chat_streams.inspector.assets import FOLDER, Assets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.mjs").write_text('import "./b.mjs";')
    (tmp_path / "b.mjs").write_text("export {};")
    return tmp_path


async def get(assets: Assets, version: str, name: str) -> web.Response:
    request = make_mocked_request("GET", f"/static/{version}/{name}", match_info={"version": version, "name": name})
    return await assets.serve(request)


@pytest.mark.parametrize("name", ["b.mjs", "c.mjs"])
def test_a_changed_or_added_file_changes_the_version(folder: Path, name: str) -> None:
    before = Assets(folder, {}).version
    assert Assets(folder, {}).version == before
    (folder / name).write_text("export { };")
    assert Assets(folder, {}).version != before


async def test_a_browser_keeps_a_file_of_this_version_for_ever_and_of_another_not_at_all(folder: Path) -> None:
    assets = Assets(folder, {})
    answer = await get(assets, assets.version, "a.mjs")
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.content_type in ("text/javascript", "application/javascript")
    older = await get(assets, "0" * 16, "a.mjs")
    assert older.headers["Cache-Control"] == "no-store"
    assert older.body == answer.body


async def test_a_file_that_changes_while_it_is_served_is_not_served_under_the_old_version(folder: Path) -> None:
    assets = Assets(folder, {})
    (folder / "b.mjs").write_text("changed")
    assert (await get(assets, assets.version, "b.mjs")).body == b"export {};"


@pytest.mark.parametrize("name", ["../site.py", "uPlot.min.css", ""])
async def test_a_missing_library_or_a_path_elsewhere_is_not_found(folder: Path, name: str) -> None:
    missing = {"uPlot.min.css": folder / "nowhere" / "uPlot.min.css"}
    with pytest.raises(web.HTTPNotFound, match=re.escape("Not Found")) as caught:
        await get(Assets(folder, missing), "0" * 16, name)
    assert "make setup" in (caught.value.text or "")


def test_every_module_that_a_page_or_a_module_loads_is_there() -> None:
    """Fails for a renamed module, which a browser would tell only on the pages that load it."""
    scripts, loaded = FOLDER / "static", set()
    for path in scripts.glob("*.mjs"):
        loaded |= set(re.findall(r' from "\./([^"]+)"', path.read_text()))
    for path in (FOLDER / "templates").glob("*.html"):
        loaded |= set(re.findall(r'src="{{ static }}/([^"]+\.mjs)"', path.read_text()))
    assert loaded == {path.name for path in scripts.glob("*.mjs")}
