import json
from typing import Any, TypeVar

import pytest

from bench.figures import cpu_by_process
from bench.goals import judge
from bench.links import Link, LinkError, Numbers, body
from bench.measure import Meter, cpu_of, summary
from bench.report import PAGE, insert, number, sections, spread
from bench.systems import ejabberd, mosquitto, nats
from bench.systems.connect_chat import ChatLink
from bench.systems.ejabberd import XmppLink
from bench.systems.mosquitto import MqttLink
from bench.systems.nats import NatsLink
from docker.local.probes import websocket_frame
from gateway import protocol


class Wire:
    """A transport that keeps all bytes written to it."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int) -> None:
        pass


L = TypeVar("L", bound=Link)


def wired(link: L) -> tuple[L, Wire]:
    wire = Wire()
    link.connection_made(wire)  # type: ignore[arg-type]
    link.ready()
    return link, wire


def server_frame(text: bytes) -> bytes:
    """Return a frame as a WebSocket server sends it: not masked."""
    masked = websocket_frame(text)
    head = {126: 4, 127: 10}.get(masked[1] & 0x7F, 2)
    return masked[:1] + bytes([masked[1] & 0x7F]) + masked[2:head] + text


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_a_body_is_json_of_its_size_with_its_number() -> None:
    for size in (16, 108, 65_536):
        made = body(1_234, size)
        assert len(made) == size
        assert isinstance(json.loads(made), str)
        assert Numbers()(made) == [1_234]


@pytest.mark.parametrize("size", [1, 2, 7, 11, 1_000])
def test_numbers_are_found_wherever_the_stream_is_cut(size: int) -> None:
    numbers = Numbers()
    data = b"..##".join(body(n, 40) for n in range(50))
    assert [n for piece in pieces(data, size) for n in numbers(piece)] == list(range(50))


@pytest.mark.parametrize("size", [1, 3, 100, 10_000])
def test_connect_chat_counts_and_acknowledges_whole_frames(size: int) -> None:
    link, wire = wired(ChatLink())
    objects = b",".join(b'{"pos":"1-%d","id":"~%d","body":%b}' % (n, n, body(n, 108)) for n in range(30))
    stream = (
        server_frame(b'[{"type":"sent","id":"~1","at":"x"},{"type":"sent","id":"~2","at":"x"}]')
        + server_frame(b'{"type":"messages","after":"0-0","until":"1-29","messages":[%b]}' % objects)
        + websocket_frame(b"", 9)[:1]
        + b"\x02hi"
        + server_frame(b'{"type":"caught_up","pos":"1-29"}')
    )
    for piece in pieces(stream, size):
        link.data_received(piece)
    assert (link.confirmed, link.received) == (2, 30)
    ack = websocket_frame(b'{"type":"ack","pos":"1-29"}')
    assert wire.written.count(ack) == 1
    assert wire.written.replace(ack, b"") == websocket_frame(b"hi", 10)


def test_connect_chat_frames_are_what_the_gateway_understands() -> None:
    link, _ = wired(ChatLink())
    (frame,) = link.frames([("bob", n, body(n, 108)) for n in range(50)], 50)
    found = protocol.parse(frame[8:].decode(), 1_000)
    assert [(send.to, send.id) for send in found if isinstance(send, protocol.Send)] == [
        ("bob", f"~{n}") for n in range(50)
    ]


def test_what_a_server_refuses_is_a_failure_of_the_link() -> None:
    chat, _ = wired(ChatLink())
    chat.data_received(server_frame(b'{"type":"error","code":"not_logged","id":"~1"}'))
    nats_link, _ = wired(NatsLink())
    nats_link.data_received(b"-ERR 'Slow Consumer'\r\n")
    xmpp, _ = wired(XmppLink())
    xmpp.data_received(b"<message type='error'></message>")
    mqtt, _ = wired(MqttLink())
    mqtt.data_received(b"\xf0\x00")
    assert all(isinstance(link.failure, LinkError) for link in (chat, nats_link, xmpp, mqtt))


@pytest.mark.parametrize("count", [0, 127, 128, 16_383, 16_384, 2_097_151])
def test_an_mqtt_length_survives_its_encoding(count: int) -> None:
    found, shift = 0, 0
    for digit in mosquitto.length(count):
        found |= (digit & 0x7F) << shift
        shift += 7
    assert found == count


@pytest.mark.parametrize("size", [1, 2, 5, 1_000, 100_000])
def test_mqtt_counts_and_acknowledges(size: int) -> None:
    link, wire = wired(MqttLink())
    stream = b"".join(
        mosquitto.publish_packet("u/bob", n, body(n, 300)) + b"\x40\x02" + n.to_bytes(2, "big") for n in range(300)
    )
    for piece in pieces(stream, size):
        link.data_received(piece)
    assert (link.confirmed, link.received) == (300, 300)
    assert wire.written == b"".join(b"\x40\x02" + (n + 1).to_bytes(2, "big") for n in range(300))


@pytest.mark.parametrize("size", [1, 10, 333, 100_000])
def test_nats_acknowledges_no_message_that_is_not_whole(size: int) -> None:
    link, wire = wired(NatsLink())
    link.pull = b"PULL\r\n"
    stream = b""
    whole = {}
    for n in range(20):
        content = body(n, 108)
        stream += b"MSG inbox.bob 1 $JS.ACK.%d %d\r\n%b\r\n" % (n, len(content), content)
        whole[len(stream)] = n
    given = 0
    for piece in pieces(stream, size):
        link.data_received(piece)
        given += len(piece)
        acked = [int(line.split(b" ")[1].rpartition(b".")[2]) for line in wire.written.split(b"\r\n") if b"ACK" in line]
        arrived = [n for end, n in whole.items() if end <= given]
        assert acked == sorted(set(acked))
        assert acked[-1:] == arrived[-1:]
    assert link.received == 20
    assert b"PULL" in wire.written


def test_nats_counts_confirmations() -> None:
    link, _ = wired(NatsLink())
    for piece in pieces(b'MSG a.1 2 30\r\n{"stream":"INBOX", "seq":12345}\r\n' * 10, 7):
        link.data_received(piece)
    assert link.confirmed == 10
    assert nats.pub("inbox.bob", b"hello", "a.1") == b"PUB inbox.bob a.1 5\r\nhello\r\n"


@pytest.mark.parametrize("size", [1, 9, 50, 100_000])
def test_xmpp_takes_the_newest_acknowledgement_and_answers_requests(size: int) -> None:
    link, wire = wired(XmppLink())
    link.start(1)
    stream = b"".join(
        ejabberd.message("bob", n, body(n, 108), ask=False) + b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % (n + 2)
        for n in range(100)
    )
    for piece in pieces(stream, size):
        link.data_received(piece)
    link.data_received(b"<r xmlns='urn:xmpp:sm:3'/>")
    assert (link.confirmed, link.received) == (100, 100)
    assert wire.written.endswith(b"h='100'/>")


def test_xmpp_asks_behind_each_50th_message_and_the_last() -> None:
    frames = XmppLink().frames([("bob", n, body(n, 108)) for n in range(120)])
    assert [index for index, frame in enumerate(frames) if ejabberd.ASK in frame] == [49, 99, 119]


def test_cpu_of_a_process_whose_name_holds_anything() -> None:
    stat = "42 (a (b) 7 8) S " + " ".join(["0"] * 10) + " 250 50 0 0"
    assert cpu_of(stat) == 3.0


def test_a_meter_counts_this_process() -> None:
    with Meter({}) as meter:
        sum(range(200_000))
    found = meter.result(10)
    assert found["seconds"] > 0
    assert found["server_cpu_us"] == 0
    assert "client" in found["cpu"]


def test_a_summary_has_median_and_extremes() -> None:
    assert summary([3, 1, 10]) == {"median": 3, "min": 1, "max": 10}


def results(**values: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    systems = {"connect_chat": "Connect Chat", "mosquitto": "Mosquitto"}
    return {
        "began": "2026-11-24T19:00:00+00:00",
        "machine": {"cores": 2, "cpu": "any", "memory_gib": 8, "kernel": "6", "python": "3.11"},
        "versions": dict.fromkeys(systems, "1"),
        "titles": systems,
        "scale": {"messages": 50_000, "users": 10_000, "senders": 1_000},
        "workloads": {name: {"title": name.title(), "unit": "messages/s", "higher_is_better": True} for name in values},
        "cells": {
            workload: {system: {"rounds": rounds} for system, rounds in found.items()}
            for workload, found in values.items()
        },
    }


def test_goals_are_judged_by_medians() -> None:
    found = results(
        store={
            "connect_chat": [{"value": v, "server_cpu_us": 14.0} for v in (10.0, 150.0, 900.0)],
            "mosquitto": [{"value": 100.0}, {"error": "it hung"}],
        }
    )
    outcomes = {(o.goal.workload, o.goal.peer, o.goal.figure): o for o in judge(found)}
    assert outcomes["store", "mosquitto", "value"].found == 1.5
    assert outcomes["store", "mosquitto", "value"].reached is True
    assert outcomes["store", None, "server_cpu_us"].reached is True
    assert outcomes["store", "nats", "value"].reached is None
    assert outcomes["drain", "mosquitto", "value"].reached is None


def test_the_report_shows_medians_spread_ratios_and_failures() -> None:
    found = results(
        store={
            "connect_chat": [{"value": 3_000.0}, {"value": 2_000.0}, {"value": 1_000.0}],
            "mosquitto": [{"value": 1_000.0}, {"error": "it hung"}],
        },
        store_arrays={"connect_chat": [{"value": 4_000.0}], "mosquitto": [{"skipped": "has no arrays"}]},
    )
    text = sections(found)
    assert "| Store | 2,000 (1,000 - 3,000) | 1,000 | 2.00 |" in text
    assert "| Store_Arrays | 4,000 | - | 4.00 |" in text
    assert "- Mosquitto, Store: it hung" in text
    assert "2 of 23 reached" in text


def test_cpu_by_process_is_per_message() -> None:
    rounds = [{"value": 1.0, "messages": 1_000, "cpu": {"client": 0.5, "kafka": used}} for used in (0.01, 0.02, 0.09)]
    assert cpu_by_process(results(store={"connect_chat": rounds}), "store", "connect_chat") == {
        "kafka": pytest.approx(20),
        "client": 500,
    }


def test_the_page_has_its_marks_and_keeps_what_is_around_them() -> None:
    page = PAGE.read_text()
    once = insert(page, "new")
    assert "\nnew\n" in once
    assert once.splitlines()[0] == page.splitlines()[0]
    assert once.splitlines()[-1] == page.splitlines()[-1]
    assert insert(once, "new") == once
    with pytest.raises(ValueError, match="no marks"):
        insert("nothing", "text")


def test_numbers_have_three_digits_or_are_whole() -> None:
    assert [number(v) for v in (12_345.6, 123.4, 12.34, 0.1234)] == ["12,346", "123", "12.3", "0.123"]
    assert spread([]) == "-"
    assert spread([1.0]) == "1"
