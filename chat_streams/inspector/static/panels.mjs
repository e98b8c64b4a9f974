// Panels: parts of a page that the server renders anew every few seconds. Every page loads this module.

import { subscribe } from "./live-events.mjs";

// The focus has not arrived at its next element yet when "focusout" is sent.
const FOCUS_MOVES_MS = 50;

// A panel is left alone while something in it has the focus or is selected: the reader would lose it.
function isInUse(panel) {
  const selection = getSelection();
  return panel.contains(document.activeElement) || (!selection.isCollapsed && panel.contains(selection.anchorNode));
}

// What the reader has unfolded stays unfolded.
function replaceContent(panel, html) {
  const unfolded = new Set([...panel.querySelectorAll("details[data-keep][open]")].map((d) => d.dataset.keep));
  panel.innerHTML = html;
  for (const details of panel.querySelectorAll("details[data-keep]")) details.open = unfolded.has(details.dataset.keep);
}

function keepUpToDate(panel) {
  let waiting = null;
  const update = (html) => {
    waiting = isInUse(panel) ? html : null;
    if (waiting === null) replaceContent(panel, html);
  };
  subscribe(panel.dataset.live, { panel: update });
  panel.addEventListener("focusout", () => {
    setTimeout(() => {
      if (waiting !== null) update(waiting);
    }, FOCUS_MOVES_MS);
  });
}

for (const panel of document.querySelectorAll("[data-live]")) keepUpToDate(panel);
