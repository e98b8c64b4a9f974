// The tail's counts of records read and shown: over pauses, and over connections that break.

import assert from "node:assert/strict";
import { test } from "node:test";

import { TailCounts } from "../../chat_streams/inspector/static/tail-counts.mjs";

const read = (records, others = {}) => ({
  ...{ records, things: 2 * records, matching: records, dropped: 0, skipped: 0, skipped_things: 0 },
  ...others,
});

test("nothing is said before the first counts", () => {
  assert.equal(new TailCounts().describe(false), null);
});

test("the newest counts of a connection replace its previous ones", () => {
  const counts = new TailCounts();
  counts.connectionOpened();
  counts.add(read(3), 3);
  counts.add(read(1500, { dropped: 20 }), 40);
  assert.equal(
    counts.describe(false),
    "1,500 records, 3,000 things read · 1,500 match · 20 not shown for speed",
  );
});

// A new connection must not be taken for the previous one, even when it has soon counted more.
for (const afterwards of [0, 3, 5, 7]) {
  test(`a connection that counts ${afterwards} after one that counted 5 adds to it`, () => {
    const counts = new TailCounts();
    counts.connectionOpened();
    counts.add(read(5), 5);
    counts.connectionOpened();
    counts.add(read(afterwards), afterwards);
    assert.match(counts.describe(false), new RegExp(`^${5 + afterwards} records`));
  });
}

test("rows that come while it is paused are counted as not shown, also after the pause", () => {
  const counts = new TailCounts();
  counts.add(read(1), 1);
  counts.togglePause();
  counts.add(read(3), 2);
  assert.match(counts.describe(false), /2 not shown for speed · paused, 2 came meanwhile$/);
  counts.togglePause();
  counts.add(read(4), 1);
  assert.match(counts.describe(false), /2 not shown for speed$/);
  counts.togglePause();
  assert.match(counts.describe(false), /paused, 0 came meanwhile$/);
});

test("records that were not read are named, and that a filter may have matched them", () => {
  const counts = new TailCounts();
  counts.add(read(1, { skipped: 12, skipped_things: 3400 }), 1);
  const unfiltered = "12 records (≈ 3,400 things) not read for speed";
  assert.ok(counts.describe(false).endsWith(unfiltered));
  assert.ok(counts.describe(true).endsWith(`${unfiltered}, where what you look for may be, too`));
});
