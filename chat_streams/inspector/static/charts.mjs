// The charts of the last hour. The page /charts loads this module after uPlot's script, whose global it draws with.

import { formatMinutes, formatSeconds, formatValue } from "./formats.mjs";
import { CONNECTION_LOST, LIVE, showStatus } from "./status.mjs";

// The server adds a point every 5 s.
const UPDATE_EVERY_MS = 5000;
const HEIGHT = 190;
const LABELS = {
  latency_p50_ms: "p50",
  latency_p99_ms: "p99",
  lag_messaging: "messaging",
  lag_notification: "notification",
  lag_history: "history",
};

const charts = document.getElementById("charts");
const style = getComputedStyle(document.documentElement);
const colour = (name) => style.getPropertyValue(name).trim();
const strokes = [colour("--link"), colour("--good"), colour("--wait")];
const axis = {
  stroke: colour("--soft"),
  grid: { stroke: colour("--line"), width: 1 },
  ticks: { stroke: colour("--line") },
};

// Starts and rebalances of services, drawn as vertical lines.
let events = [];

function drawEvents(plot) {
  plot.ctx.fillStyle = colour("--soft");
  for (const event of events) {
    const x = Math.round(plot.valToPos(event.at / 1000, "x", true));
    const isInside = x >= plot.bbox.left && x <= plot.bbox.left + plot.bbox.width;
    if (isInside) plot.ctx.fillRect(x, plot.bbox.top, 1, plot.bbox.height);
  }
}

function labelTimes(plot, seconds, axisIndex, space, step) {
  return seconds.map((s) => (step < 60 ? formatSeconds : formatMinutes)(s * 1000));
}

function createPlot(place) {
  const names = place.dataset.series.split(" ");
  const series = names.map((name, i) => ({
    label: LABELS[name] ?? name,
    stroke: strokes[i],
    width: 1.6,
    spanGaps: true,
    value: (plot, value) => formatValue(value),
  }));
  const options = {
    width: place.clientWidth,
    height: HEIGHT,
    cursor: { sync: { key: "hour" } },
    hooks: { drawAxes: [drawEvents] },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    axes: [{ ...axis, values: labelTimes, space: 90 }, { ...axis, size: 64 }],
    series: [{ value: "{HH}:{mm}:{ss}" }, ...series],
  };
  return { place, names, plot: new uPlot(options, [[], ...names.map(() => [])], place) };
}

const plots = [...charts.querySelectorAll(".plot")].map(createPlot);

// The columns and events of the last hour, or null while the server cannot be reached.
async function fetchHour() {
  try {
    const answer = await fetch(charts.dataset.charts);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

async function update() {
  const hour = await fetchHour();
  showStatus(hour === null ? CONNECTION_LOST : LIVE);
  if (hour === null) return;
  events = hour.events.filter((event) => !event.instance.startsWith("inspector"));
  for (const { plot, names } of plots) plot.setData([hour.columns.at, ...names.map((name) => hour.columns[name])]);
  charts.dataset.points = hour.columns.at.length;
}

addEventListener("resize", () => {
  for (const { plot, place } of plots) plot.setSize({ width: place.clientWidth, height: HEIGHT });
});
setInterval(update, UPDATE_EVERY_MS);
update();
