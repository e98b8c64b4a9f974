from __future__ import annotations

from pathlib import Path

from chat_streams.model.position import Position
from chat_streams.model.records import INCOMING, LOGGED, Message, Messages
from docker.aws import cost
from tables.chat_history import Entry, _item

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/aws.md").read_text()
USER, ID = "user-0123456789", "0f8fad5b-d9cb-469f-a165-70867728950e"
BODY = '"' + "x" * (cost.BODY - 2) + '"'
JSON = f',"id":"{ID}","from":"{USER}","body":{BODY}}}'.encode()
AT = 1_764_000_000_000
MESSAGE = Message(USER, USER, ID, LOGGED, JSON)


def test_the_document_has_the_table_that_the_model_makes() -> None:
    assert cost.table().strip() in DOCUMENT


def test_sizes_are_those_of_the_code() -> None:
    item = {
        name: next(iter(value.values())) for name, value in _item(Entry(Position(2**40 + 1, 0), AT, MESSAGE)).items()
    }
    size = {name: len(name) + len(value) for name, value in item.items()}
    assert sum(size.values()) + 100 == cost.ITEM
    assert sum(size.values()) - size["sender"] + 100 == cost.INDEX_ITEM
    assert abs(len(INCOMING.encode(Messages((MESSAGE,)))) - cost.RECORD) < 100


def test_a_gigabyte_gets_cheaper_with_each_step() -> None:
    assert cost.tiered(10_000) == 900
    assert cost.tiered(60_000) == 900 + 3_400 + 700
