// The tail of a topic: rows that come in while somebody watches, newest first. The page /tail loads this module.

import { formatMilliseconds } from "./formats.mjs";
import { subscribe } from "./live-events.mjs";
import { showStatus } from "./status.mjs";
import { TailCounts } from "./tail-counts.mjs";

// Older rows are removed: a page that is left open must not grow for ever.
const MAX_ROWS = 200;

const table = document.getElementById("tail");
const sentence = document.getElementById("tail-counts");
const pauseButton = document.getElementById("pause");
const counts = new TailCounts();

function createLink(url, text) {
  const link = document.createElement("a");
  link.href = url;
  link.textContent = text;
  link.className = "id";
  return link;
}

// Everything is added as text, never as HTML: it is what users have written.
function addCell(row, content, className = "") {
  const cell = row.insertCell();
  cell.append(content);
  cell.className = className;
  return cell;
}

function addRow({ at, partition, offset, what, text, id }) {
  const row = table.tBodies[0].insertRow(0);
  addCell(row, formatMilliseconds(at), "id");
  addCell(row, createLink(`/record/${table.dataset.topic}/${partition}/${offset}`, `${partition}/${offset}`));
  addCell(row, what);
  const body = addCell(row, text, "body");
  if (id) body.append(" ", createLink(`/message/${encodeURIComponent(id)}`, id));
}

function addRows(items) {
  for (const item of items.sort((a, b) => a.at - b.at)) addRow(item);
  while (table.tBodies[0].rows.length > MAX_ROWS) table.tBodies[0].deleteRow(-1);
}

function showCounts() {
  sentence.textContent = counts.describe("filtered" in table.dataset) ?? sentence.textContent;
}

const close = subscribe(
  table.dataset.tail,
  {
    tail: (data) => {
      const found = JSON.parse(data);
      counts.add(found.counts, found.items.length);
      if (!counts.paused) addRows(found.items);
      showCounts();
    },
    away: (text) => {
      sentence.textContent = text;
    },
    end: (text) => {
      close();
      showStatus(text);
    },
  },
  () => counts.connectionOpened(),
);

pauseButton.addEventListener("click", () => {
  counts.togglePause();
  pauseButton.setAttribute("aria-pressed", counts.paused);
  pauseButton.textContent = counts.paused ? "Go on" : "Pause";
  showCounts();
});
