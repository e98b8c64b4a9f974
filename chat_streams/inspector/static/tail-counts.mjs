// What the tail has read and shown, counted over all its connections, and the sentence that says so. Needs no browser.

import { formatCount } from "./formats.mjs";

export class TailCounts {
  #total = null;
  #ofConnection = {};
  #paused = false;
  #meanwhile = 0;
  #hidden = 0;

  // The server counts from zero on each connection.
  connectionOpened() {
    this.#ofConnection = {};
  }

  // `counts` is what the server has counted on this connection so far, `items` how many rows came with it.
  add(counts, items) {
    this.#total ??= {};
    for (const [name, count] of Object.entries(counts)) {
      this.#total[name] = (this.#total[name] ?? 0) + count - (this.#ofConnection[name] ?? 0);
    }
    this.#ofConnection = counts;
    if (this.#paused) {
      this.#meanwhile += items;
      this.#hidden += items;
    }
  }

  get paused() {
    return this.#paused;
  }

  // Rows that come while it is paused are not shown later, only counted.
  togglePause() {
    this.#paused = !this.#paused;
    this.#meanwhile = 0;
  }

  // The counts in words, or null before the first of them. A filter may match what was not read, which is said.
  describe(filtered) {
    const total = this.#total;
    if (total === null) return null;
    const parts = [
      `${formatCount(total.records)} records, ${formatCount(total.things)} things read`,
      `${formatCount(total.matching)} match`,
      `${formatCount(total.dropped + this.#hidden)} not shown for speed`,
    ];
    if (total.skipped) {
      const where = filtered ? ", where what you look for may be, too" : "";
      const things = formatCount(total.skipped_things);
      parts.push(`${formatCount(total.skipped)} records (≈ ${things} things) not read for speed${where}`);
    }
    if (this.#paused) parts.push(`paused, ${formatCount(this.#meanwhile)} came meanwhile`);
    return parts.join(" · ");
  }
}
