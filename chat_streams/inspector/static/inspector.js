// The live parts: panels that the server sends anew, the tail, the charts. Everything else is plain HTML.
"use strict";

const status = document.getElementById("live-status");
const say = (text) => { if (status.textContent !== text) status.textContent = text; };

// A browser comes back by itself and names the last event it saw; it gives up where the answer is an error.
function listen(url, handlers) {
  let source, last = "";
  const open = () => {
    const address = new URL(url, location.href);
    source = new EventSource(address);
    source.onopen = () => say("live");
    source.onerror = () => {
      say("the connection is lost, trying again…");
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => { last = event.lastEventId || last; say("live"); handle(event.data, source); });
    }
  };
  open();
  addEventListener("pagehide", () => source.close());
  return { close: () => source.close(), open };
}

// Panels. What somebody has the focus in, or is selecting, is not taken from under them.
for (const panel of document.querySelectorAll("[data-live]")) {
  let waiting = null;
  const put = (html) => {
    const open = new Set([...panel.querySelectorAll("details[data-keep][open]")].map((d) => d.dataset.keep));
    panel.innerHTML = html;
    for (const d of panel.querySelectorAll("details[data-keep]")) d.open = open.has(d.dataset.keep);
    waiting = null;
  };
  const busy = () => panel.contains(document.activeElement) || (!getSelection().isCollapsed && panel.contains(getSelection().anchorNode));
  listen(panel.dataset.live, { panel: (html) => { if (busy()) waiting = html; else put(html); } });
  panel.addEventListener("focusout", () => setTimeout(() => { if (waiting !== null && !busy()) put(waiting); }, 50));
}

// The tail: rows as texts, never as HTML; so many as a page can hold.
const tail = document.querySelector("[data-tail]");
if (tail) {
  const ROWS = 200, body = tail.tBodies[0], counts = document.getElementById("tail-counts"), pause = document.getElementById("pause");
  const number = new Intl.NumberFormat("en");
  let paused = false, unseen = 0, late = 0, total = null, before = null;
  const cell = (row, text, url) => {
    const td = row.insertCell();
    if (url) { const a = td.appendChild(document.createElement("a")); a.href = url; a.textContent = text; a.className = "id"; } else td.textContent = text;
    return td;
  };
  const show = () => {
    if (!total) return;
    const left = total.dropped + late, filtered = tail.dataset.filtered ? ", where what you look for may be, too" : "";
    counts.textContent = `${number.format(total.records)} records, ${number.format(total.things)} things read · ${number.format(total.matching)} match · ` +
      `${number.format(left)} not shown for speed` +
      (total.skipped ? ` · ${number.format(total.skipped)} records (≈ ${number.format(total.skipped_things)} things) not read for speed${filtered}` : "") +
      (paused ? ` · paused, ${number.format(unseen)} came meanwhile` : "");
  };
  const draw = (items) => {
    for (const item of items.sort((a, b) => a.at - b.at)) {
      const row = body.insertRow(0);
      cell(row, new Date(item.at).toISOString().slice(11, 23)).className = "id";
      cell(row, `${item.partition}/${item.offset}`, `/record/${tail.dataset.topic}/${item.partition}/${item.offset}`);
      cell(row, item.what);
      const what = cell(row, item.text);
      what.className = "body";
      if (item.id) { const a = document.createElement("a"); a.href = `/message/${encodeURIComponent(item.id)}`; a.textContent = item.id; a.className = "id"; what.append(" ", a); }
    }
    while (body.rows.length > ROWS) body.deleteRow(-1);
  };
  const live = listen(tail.dataset.tail, {
    tail: (data) => {
      const found = JSON.parse(data);
      // Its counts begin anew when the browser comes back.
      if (before) for (const name of Object.keys(found.counts)) total[name] += Math.max(0, found.counts[name] - (found.counts.records < before.records ? 0 : before[name]));
      else total = { ...found.counts };
      before = found.counts;
      if (paused) { unseen += found.items.length; late += found.items.length; } else draw(found.items);
      show();
    },
    away: (text) => { counts.textContent = text; },
    end: (text) => { live.close(); say(text); },
  });
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", paused);
    pause.textContent = paused ? "Go on" : "Pause";
    unseen = 0;
    show();
  });
}

// The charts: read anew every 5 s, as the points are.
const charts = document.getElementById("charts");
if (charts && window.uPlot) {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const strokes = [colour("--link"), colour("--good"), colour("--wait")], plots = [];
  const names = { latency_p50_ms: "p50", latency_p99_ms: "p99", lag_messaging: "messaging", lag_notification: "notification", lag_history: "history" };
  const clock = (_, ts, __, ___, step) => ts.map((t) => new Date(t * 1000).toISOString().slice(11, step < 60 ? 19 : 16));
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  let events = [];
  const marks = (plot) => {
    for (const event of events) {
      const x = Math.round(plot.valToPos(event.at / 1000, "x", true));
      if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) continue;
      plot.ctx.fillStyle = colour("--soft");
      plot.ctx.fillRect(x, plot.bbox.top, 1, plot.bbox.height);
    }
  };
  for (const place of charts.querySelectorAll(".plot")) {
    const series = place.dataset.series.split(" ");
    const plot = new uPlot({
      width: place.clientWidth, height: 190, cursor: { sync: { key: "hour" } }, hooks: { drawAxes: [marks] },
      tzDate: (s) => uPlot.tzDate(new Date(s * 1000), "Etc/UTC"),
      axes: [{ ...axis, values: clock, space: 90 }, { ...axis, size: 64 }],
      series: [{ value: "{HH}:{mm}:{ss}" }, ...series.map((name, i) => ({ label: names[name] || name, stroke: strokes[i], width: 1.6, spanGaps: true, value: (_, v) => (v == null ? "–" : v.toLocaleString("en", { maximumFractionDigits: 1 })) }))],
    }, [[], ...series.map(() => [])], place);
    plots.push({ plot, series, place });
  }
  const read = async () => {
    try {
      const answer = await fetch(charts.dataset.charts);
      if (!answer.ok) throw new Error(answer.status);
      const { columns, events: found } = await answer.json();
      events = found.filter((event) => !event.instance.startsWith("inspector"));
      for (const { plot, series } of plots) plot.setData([columns.at, ...series.map((name) => columns[name])]);
      charts.dataset.points = columns.at.length;
      say("live");
    } catch { say("the connection is lost, trying again…"); }
  };
  read();
  setInterval(read, 5000);
  addEventListener("resize", () => { for (const { plot, place } of plots) plot.setSize({ width: place.clientWidth, height: 190 }); });
}
