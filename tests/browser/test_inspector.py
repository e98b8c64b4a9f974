"""The inspector's pages and permissions, in a real browser against real engines."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaProducer
from playwright.async_api import Page, Response, expect

from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, SERVICE_STATS, partition_of
from chat_streams.model.times import now_ms
from chat_streams.runtime.statistics import ServiceStats, encode
from chat_streams.runtime.tokens import mint
from clients.python.client import all_sent
from docker.local.part import Running
from docker.local.probes import WITHIN_S, Received, eventually, user
from docker.local.temporary_stack import Stack
from tables.inbox import keys
from tests.browser.conftest import Open, shoot

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


UNNAMED = """[...document.querySelectorAll('input:not([type=hidden]),select,textarea')]
  .filter(e => !e.labels.length && !e.ariaLabel).length"""
SOURCES = """window.sources = [];
window.EventSource = class extends EventSource { constructor(url) { super(url); sources.push(this); } };"""
HEADED = """[...document.querySelectorAll('table')].filter(t => !t.closest('.plot'))
  .every(t => t.querySelector('thead th[scope=col]'))"""


async def api(stack: Stack, inspector: Running, path: str, *roles: str, **options: Any) -> tuple[int, Any]:
    """Call the JSON API as a script does."""
    token = mint(stack.settings.jwt_key(), "script", 600, roles or ["viewer"])
    url, headers = f"{inspector.part.url}{path}", {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(options.pop("method", "GET"), url, **options) as response,
    ):
        return response.status, await response.json()


async def find(page: Page, text: str) -> None:
    """Search with the search box."""
    await page.get_by_role("searchbox").fill(text)
    await page.keyboard.press("Enter")


async def test_a_page_without_a_token_is_refused_and_the_form_takes_one(
    stack: Stack, inspector: Running, visit: Open
) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/api/overview", "/user/bob", "/live/streams", "/message/x"):
            async with session.get(inspector.part.url + path, allow_redirects=False) as answer:
                assert answer.status in (303, 401), path
                policy = answer.headers["Content-Security-Policy"]
                assert "script-src 'self'" in policy
                assert "unsafe" not in policy
        # A page of another site cannot send a form, whatever cookie the browser adds.
        token = mint(stack.settings.jwt_key(), "eve", 60, ["operator"])
        forged = {"Origin": "http://elsewhere.test", "Cookie": f"inspector_token={token}"}
        for path in ("/redrive", "/guarantee", "/logout", "/login"):
            async with session.post(inspector.part.url + path, headers=forged, data={"go": "yes"}) as answer:
                assert answer.status == 403, path
        async with session.post(
            inspector.part.url + "/login",
            headers={"Origin": inspector.part.url},
            data={"token": token, "next": "//elsewhere.test"},
            allow_redirects=False,
        ) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/")
            assert "HttpOnly" in answer.headers["Set-Cookie"]
            assert "SameSite=Strict" in answer.headers["Set-Cookie"]
        async with session.post(
            inspector.part.url + "/login", headers={"Origin": inspector.part.url}, data={"token": token[:-3] + "abc"}
        ) as answer:
            assert answer.status == 403
            assert token not in await answer.text()
    page = await visit("/user/nobody-at-all?x=1")
    assert page.url.endswith("/user/nobody-at-all?x=1"), "a shared link leads where it said"
    await expect(page.get_by_role("main")).to_contain_text("no inbox and no devices in Redis")
    await page.get_by_role("button", name="Leave").click()
    await expect(page.get_by_label("Token")).to_be_visible()


async def test_the_search_box_leads_to_a_messages_journey(stack: Stack, inspector: Running, visit: Open) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    async with stack.connect(alice) as sender, stack.connect(bob, received) as client:
        await client.wait_caught_up()
        message = (await sender.send(bob, {"text": SCRIPT})).id
        await received.wait(1)
        await stack.wait_stored(bob, 0)
        page = await visit("/")
        await find(page, f"message:{message}")
        stages = page.get_by_role("list", name="Stages")
        for stage in ("accepted", "logged", "pushed", "forwarded", "acknowledged", "history"):
            await expect(stages.get_by_text(stage, exact=True)).to_be_visible()
        await expect(page.get_by_text(f"{bob}'s device phone acknowledged it")).to_be_visible()
        await shoot(page, "journey")
        await find(page, bob)
        await page.get_by_role("link", name=bob, exact=True).click()
        await expect(page.get_by_text("online", exact=True)).to_be_visible()
        await expect(page.get_by_role("cell", name="phone").first).to_be_visible()
        # The page is live: the disconnect shows without a reload.
    await expect(page.get_by_text("offline", exact=True)).to_be_visible()
    _, found = await api(stack, inspector, f"/api/journey/{message}?to={bob}")
    assert (found["journeys"][0]["fate"], found["journeys"][0]["to"]) == ("acknowledged", bob)


async def test_the_journey_says_why_a_message_is_not_delivered(stack: Stack, visit: Open) -> None:
    alice, bob = user("alice"), user("bob")
    ids = await stack.send(alice, bob, range(5))
    page = await visit("/", phone=True)
    await find(page, f"message:{ids[3]}")
    verdict = page.get_by_text(re.compile(f"{bob} has no connection.*3 before it"))
    await expect(verdict).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    await shoot(page, "journey-phone")
    await page.goto(f"/user/{bob}")
    await expect(page.get_by_text("offline", exact=True)).to_be_visible()
    await expect(page.get_by_role("row", name=f"{alice} 5", exact=True)).to_be_visible()
    await expect(page.get_by_role("region", name=f"Last messages from {bob}")).to_contain_text("Looked for in")
    await shoot(page, "user-phone")
    await page.get_by_role("button", name="Trace").click()
    await page.wait_for_url(re.compile(f"user={bob}.*minutes=10"))
    await expect(page.locator("#tail-counts")).to_contain_text("things read")
    await stack.send(alice, bob, ["traced"])
    await expect(page.locator("#tail tbody tr")).to_have_count(1)


async def test_a_search_without_result_says_what_was_searched(stack: Stack, inspector: Running, visit: Open) -> None:
    page = await visit("/message/no-such-id")
    await expect(page.get_by_role("alert")).to_contain_text("records of incoming_messages, partitions and offsets")
    for text, where in (
        ("incoming_messages/0/99999999", "holds offsets"),
        ("connection:00000000", "records of session_events"),
        ("letter:99999", "no dead letter 99999"),
        ("nowhere/0/1", "there is no topic nowhere"),
    ):
        await find(page, text)
        await expect(page.get_by_role("main")).to_contain_text(where)
    await find(page, SCRIPT)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("<script>")
    assert await page.title() != "owned"
    status, found = await api(stack, inspector, "/api/user/nobody-here")
    assert status == 404
    assert "no inbox" in found["error"]


async def test_bodies_are_masked_unless_the_token_may_see_them_and_are_text_always(stack: Stack, visit: Open) -> None:
    alice, bob = user("alice"), user("bob")
    (id_,) = await stack.send(alice, bob, [SCRIPT])
    partition = partition_of(bob, stack.settings.partitions)

    async def stored() -> bool:
        async with stack.connect(bob, device="watch") as client:
            return bool((await client.history(alice)).messages)

    await eventually(stored)
    position = await stack.top(bob)
    masked = await visit(f"/user/{bob}", "operator")
    await expect(masked.get_by_role("cell", name="masked").first).to_be_visible()
    where = f"/record/{INCOMING_MESSAGES}/{partition}/{position.offset}"
    for path in (f"/user/{bob}", where, f"/tail?topic={INCOMING_MESSAGES}&user={bob}"):
        await masked.goto(path)
        assert "owned" not in await masked.content(), path
    page = await visit(f"/user/{bob}", "viewer", "bodies")
    await expect(page.get_by_role("row", name=re.compile(id_)).get_by_text("<script>")).to_be_visible()
    await page.goto(where)
    await expect(page.get_by_text("<script>document.title").first).to_be_visible()
    assert await page.title() != "owned"
    await page.goto(f"/tail?topic={INCOMING_MESSAGES}&user={bob}")
    await expect(page.locator("#tail-counts")).to_contain_text("things read")
    await stack.send(alice, bob, [SCRIPT])
    await expect(page.get_by_role("row", name=re.compile("<script>"))).to_be_visible()
    assert await page.locator("#tail img, #tail script").count() == 0
    assert await page.title() != "owned"


async def test_the_tail_filters_pauses_and_goes_on_where_it_was(stack: Stack, inspector: Running, visit: Open) -> None:
    alice, bob = user("alice"), user("bob")
    page = await visit(f"/tail?topic={INCOMING_MESSAGES}&sender={alice}")
    counts = page.locator("#tail-counts")
    await expect(counts).to_contain_text("things read")
    rows = page.locator("#tail tbody tr")
    async with stack.connect(alice) as sender, stack.connect(user("other")) as other:
        await other.send(bob, "not hers")
        await sender.send(bob, "first")
        await expect(rows).to_have_count(1)
        await page.get_by_role("button", name="Pause").click()
        await sender.send(bob, "while paused")
        await expect(counts).to_contain_text("paused, 1 came meanwhile")
        await expect(rows).to_have_count(1)
        await page.get_by_role("button", name="Go on").click()
        # The inspector is killed and comes back: messages sent meanwhile are shown, once, and earlier ones are not
        # repeated.
        inspector.kill()
        await sender.send(bob, "while the inspector was away")
        await stack.start(inspector.part)
        await sender.send(bob, "afterwards")
        await expect(rows).to_have_count(3)
        await shoot(page, "tail")
        # A flood of messages is counted in full and shown in part; the page stays responsive.
        all_sent(await sender.send_many((bob, n) for n in range(3_000)))
        await expect(counts).to_contain_text(re.compile(r"3,00\d match"))
        assert 0 < await rows.count() <= 200
    dropped = re.search(r"([\d,]+) not shown for speed", await counts.inner_text())
    assert dropped is not None
    assert int(dropped[1].replace(",", "")) > 1_000


async def test_the_tail_goes_on_where_it_was_after_an_answer_that_makes_the_browser_give_up(
    stack: Stack, visit: Open
) -> None:
    alice, bob = user("alice"), user("bob")
    page = await visit("/")
    await page.add_init_script(SOURCES)
    await page.goto(f"/tail?topic={INCOMING_MESSAGES}&sender={alice}")
    await expect(page.locator("#tail-counts")).to_contain_text("things read")
    rows = page.locator("#tail tbody tr")
    await stack.send(alice, bob, ["before"])
    await expect(rows).to_have_count(1)
    # As after a 503, which a browser does not retry: the source is closed, and reports it after an event has come.
    await page.evaluate("sources.at(-1).close()")
    (meanwhile,) = await stack.send(alice, bob, ["meanwhile"])
    async with page.expect_request(re.compile("/live/tail.*last_event_id=")):
        await page.evaluate("sources.at(-1).dispatchEvent(new Event('error'))")
    await expect(rows).to_have_count(2, timeout=30_000)
    await expect(rows.first).to_contain_text(meanwhile)


async def test_all_scripts_of_a_page_are_modules_of_one_version_that_a_browser_keeps(visit: Open) -> None:
    page = await visit("/")
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    for path, wanted in (("/tail", {"tail.mjs", "tail-counts.mjs"}), ("/charts", {"charts.mjs", "uPlot.iife.min.js"})):
        answers.clear()
        await page.goto(path)
        files = {r.url.rpartition("/")[2]: r for r in answers if "/static/" in r.url}
        assert files.keys() >= wanted | {"panels.mjs", "live-events.mjs", "status.mjs", "formats.mjs"}
        assert len({r.url.rpartition("/")[0] for r in files.values()}) == 1
        for answer in files.values():
            assert answer.status == 200, answer.url
            assert "immutable" in answer.headers["cache-control"]


async def test_streams_workers_gateways_and_charts_show_the_running_system(
    stack: Stack, inspector: Running, visit: Open
) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    running = True

    async def talk() -> None:
        async with stack.connect(alice) as sender, stack.connect(bob, received):
            while running:
                all_sent(await sender.send_many((bob, n) for n in range(20)))
                await asyncio.sleep(0.1)

    talking = asyncio.create_task(talk())
    try:
        page = await visit("/streams")
        lag = page.get_by_role("region", name="Who is behind")
        await expect(lag.get_by_role("row", name=re.compile("messaging incoming_messages"))).to_be_visible()
        topic = page.get_by_role("region", name="Topics").get_by_role("row", name=re.compile("^incoming_messages"))
        await expect(topic).to_contain_text(re.compile(r"[1-9][\d.]*/s[\d,]+/s[\d.]+ (B|KiB)/s"))
        await shoot(page, "streams")
        await page.goto("/agents")
        for name in ("messaging", "notification", "history"):
            worker = page.get_by_role("region", name=re.compile(f"^{name}@"))
            await expect(worker).to_contain_text("0, 1, 2, 3, 4, 5, 6, 7")
        await expect(page.get_by_role("region", name=re.compile("^messaging@"))).to_contain_text("table sessions")
        await expect(page.get_by_role("region", name=re.compile("^history@"))).to_contain_text(re.compile(r"≤ \S+ ms"))
        await shoot(page, "workers")
        await page.goto("/gateways")
        gateway = page.get_by_role("region", name=re.compile("^gateway@"))
        await expect(gateway).to_contain_text(re.compile(r"accepted\s*[1-9]"))
        await expect(page.get_by_role("region", name="Slots")).to_contain_text("1 of 16 are leased")
        await shoot(page, "gateways")
        await page.goto("/charts")
        await expect(page.locator("#charts[data-points]")).to_be_visible()
        await expect(page.locator(".u-over")).to_have_count(4)
        await shoot(page, "charts")
        await page.goto("/")
        await expect(page.get_by_text(re.compile(r"Kafka"))).to_be_visible()
        await shoot(page, "overview")
        _, before = await api(stack, inspector, "/api/charts")
        assert any(value > 0 for value in before["columns"]["accepted"])
    finally:
        running = False
        await talking
    # The last hour is stored in the log, not in the inspector.
    inspector.kill()
    await stack.start(inspector.part)

    async def same() -> bool:
        _, now = await api(stack, inspector, "/api/charts")
        # The newest point may have grown meanwhile.
        old = before["columns"]
        wanted = dict(zip(old["at"][:-1], old["accepted"][:-1], strict=True))
        found = dict(zip(now["columns"]["at"], now["columns"]["accepted"], strict=True))
        return all(found.get(at) == value for at, value in wanted.items())

    await eventually(same)


async def test_dead_letters_are_grouped_and_only_an_operator_redrives(
    stack: Stack, inspector: Running, visit: Open
) -> None:
    alice, bob, carol, received, hers = user("alice"), user("bob"), user("carol"), Received(), Received()
    producer = AIOKafkaProducer(bootstrap_servers=stack.settings.kafka)
    await producer.start()
    (await producer.send_and_wait(INBOX_REQUESTS, b"\x00garbage", partition=0))
    await producer.stop()
    for name in (bob, carol):
        await stack.redis.set(keys(name)[0], "no stream")
    (lost,) = await stack.send(alice, bob, ["lost"])

    async def there(app: str, count: int) -> Any:
        _, found = await api(stack, inspector, "/api/dead-letters")
        return [g for g in found["groups"] if g["app"] == app and g["open"] == count]

    await stack.send(alice, carol, ["lost, too"])
    (group,) = await eventually(lambda: there("messaging", 2))
    number = group["letters"][0]["number"]
    (group,) = await eventually(lambda: there("notification", 1))
    garbage = group["letters"][0]["number"]
    page = await visit(f"/message/{lost}")
    await expect(page.get_by_text(re.compile("messaging could not apply it"))).to_be_visible()
    await page.get_by_role("link", name=re.compile(r"Dead letter \d")).click()
    await expect(page.get_by_text(lost).first).to_be_visible()
    await expect(page.get_by_text("needs a token with the role operator")).to_be_visible()
    assert await page.get_by_role("button", name="What would redriving do?").count() == 0
    # A record that cannot be decoded is shown as bytes.
    await page.goto(f"/dead-letters/{garbage}")
    await expect(page.get_by_text("00 67 61 72 62 61 67 65")).to_be_visible()
    status, answer = await api(stack, inspector, "/api/redrive", method="POST", data={"number": number, "go": "yes"})
    assert status == 403
    assert "operator" in answer["error"]

    for name in (bob, carol):
        await stack.redis.delete(keys(name)[0])
    page = await visit("/dead-letters", "operator")
    await shoot(page, "dead-letters")
    group = page.get_by_role("region", name=re.compile("WRONGTYPE"))
    await group.get_by_role("button", name="What would redriving do?").click()
    await expect(page.get_by_text(re.compile(f"dead letter {number}.*would go to {INCOMING_MESSAGES}"))).to_be_visible()
    async with stack.connect(bob, received) as client, stack.connect(carol, hers):
        await client.wait_caught_up()
        assert received.messages == hers.messages == [], "a dry run wrote something"
        await page.get_by_role("button", name="Redrive 2 records").click()
        await expect(page.get_by_text(re.compile("now at offset"))).to_have_count(2)
        (message,) = await received.wait(1)
        assert message.id == lost
        await hers.wait(1)
    await page.goto("/dead-letters")
    await expect(page.get_by_role("region", name=re.compile("WRONGTYPE"))).to_contain_text("0 open")


async def test_the_guarantee_adds_up_and_an_operator_has_it_audited(stack: Stack, visit: Open) -> None:
    page = await visit("/guarantee")
    assert await page.get_by_role("button", name="Audit now").count() == 0
    page = await visit("/guarantee", "operator", dark=False)
    await page.get_by_role("button", name="Audit now").click()
    await page.evaluate("document.activeElement.blur()")
    panel = page.get_by_role("region", name="The last audit")
    await expect(panel).to_contain_text("It adds up.")
    cells = await panel.locator("tbody tr").all_inner_texts()
    numbers = {row.split("\t")[0].strip("=+ "): int(row.split("\t")[1].replace(",", "")) for row in cells}
    assert numbers["accepted"] == sum(count for name, count in numbers.items() if name != "accepted") > 0
    await shoot(page, "guarantee")


async def test_a_rebalance_is_on_the_time_line_with_who_has_which_partition_since(stack: Stack, visit: Open) -> None:
    page = await visit("/agents")
    worker = page.get_by_role("region", name=re.compile("^history@"))
    await expect(worker).to_have_count(1)
    second = await stack.start(stack.service("history"))
    try:
        events = page.get_by_role("region", name="Starts and rebalances")
        rebalance = re.compile(rf"\d rebalances? history@\S+:{stack.running['history'].pid}")
        await expect(events).to_contain_text(rebalance)
        # Workers publish their statistics every 5 s.
        await expect(events).to_contain_text(re.compile(rf"started history@\S+:{second.pid}"))
        await expect(worker).to_have_count(2)
        for one in (0, 1):
            half = worker.nth(one).get_by_role("cell", name=re.compile(r"^\d, \d, \d, \d$"))
            await expect(half).to_be_visible()
    finally:
        stack.forget(second)


async def test_an_engine_that_is_away_is_grey_with_since_when_and_the_rest_works(
    stack: Stack, inspector: Running, visit: Open
) -> None:
    bob = user("bob")
    await stack.send(user("alice"), bob, [1])
    page = await visit("/")
    engines = page.get_by_role("region", name="Engines")
    for name in ("Kafka", "Redis", "DynamoDB"):
        await expect(engines).to_contain_text(re.compile(rf"{name}\s+there"))
    paused = [stack.running[name].process for name in ("dynamodb", "kafka")]
    for process in paused:
        process.send_signal(signal.SIGSTOP)
    try:
        for name in ("Kafka", "DynamoDB"):
            await expect(engines).to_contain_text(re.compile(rf"{name}\s+away since \d\d:"))
        await page.goto(f"/user/{bob}")
        await expect(page.get_by_text(re.compile("The chat database does not answer"))).to_be_visible()
        await expect(page.get_by_text(re.compile("Kafka is away since")).first).to_be_visible()
        # The part of the page that comes from Redis still works.
        await expect(page.get_by_text(re.compile(r"in the inbox\s*1\s*messages"))).to_be_visible()
        await shoot(page, "engine-away")
        await page.goto("/message/some-id")
        await expect(page.get_by_role("alert")).to_contain_text("Kafka is away since")
        await page.goto("/streams")
        await expect(page.get_by_text(re.compile("what is shown is from before"))).to_be_visible()
    finally:
        for process in paused:
            process.send_signal(signal.SIGCONT)
    await page.goto("/")
    for name in ("Kafka", "DynamoDB"):
        await expect(engines).to_contain_text(re.compile(rf"{name}\s+there since"))


async def test_a_page_is_usable_with_the_keyboard_alone_and_names_its_parts(visit: Open) -> None:
    page = await visit("/")
    await page.goto("/streams")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.id") == "q"
    for path in ("/", "/streams", "/tail", "/agents", "/gateways", "/dead-letters", "/guarantee", "/charts"):
        await page.goto(path)
        assert await page.get_by_role("main").count() == 1
        assert await page.get_by_role("heading", level=1).count() == 1
        assert await page.locator("nav [aria-current=page]").count() == 1, path
        assert await page.evaluate(UNNAMED) == 0, path
        assert await page.evaluate(HEADED), path


@pytest.mark.long
async def test_a_live_sum_that_does_not_add_up_is_red_until_an_audit(stack: Stack, visit: Open) -> None:
    page = await visit("/guarantee", "operator")
    await expect(page.locator(".verdict.good").get_by_text("It adds up")).to_be_visible()
    # A gateway that claims to have accepted seven messages which no other part has counted.
    forged = ServiceStats("gateway", "gateway@elsewhere:1", now_ms(), now_ms(), {"accepted": 0})
    producer = AIOKafkaProducer(bootstrap_servers=stack.settings.kafka)
    await producer.start()
    red = page.locator(".verdict.bad").get_by_text(
        re.compile(r"It does NOT add up: 7 accepted and not applied.*nothing explains it")
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await red.is_visible():
                forged.at = now_ms()
                await producer.send_and_wait(SERVICE_STATS, encode(forged), forged.instance.encode(), 0)
                forged.counters["accepted"] = 7
                await asyncio.sleep(1)
    finally:
        await producer.stop()
    await shoot(page, "guarantee-red")
    await page.get_by_role("button", name="Audit now").click()
    await expect(page.get_by_text("It adds up.", exact=False).first).to_be_visible()
    await expect(red).not_to_be_visible()
