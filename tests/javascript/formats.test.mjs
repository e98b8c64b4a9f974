// Numbers and times as text.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  formatCount,
  formatMilliseconds,
  formatMinutes,
  formatSeconds,
  formatValue,
} from "../../chat_streams/inspector/static/formats.mjs";

test("numbers have English separators, and a missing value is a dash", () => {
  assert.equal(formatCount(1234567), "1,234,567");
  assert.equal(formatValue(1234.56), "1,234.6");
  assert.equal(formatValue(0), "0");
  assert.equal(formatValue(null), "–");
  assert.equal(formatValue(undefined), "–");
});

test("times are in UTC, wherever the browser is", () => {
  const ms = Date.UTC(2026, 0, 2, 3, 4, 5, 67);
  assert.equal(formatMinutes(ms), "03:04");
  assert.equal(formatSeconds(ms), "03:04:05");
  assert.equal(formatMilliseconds(ms), "03:04:05.067");
});
