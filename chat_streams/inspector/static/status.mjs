// The line at the foot of a page that says whether its live parts are connected.

const line = document.getElementById("live-status");

export const LIVE = "live";
export const CONNECTION_LOST = "the connection is lost, trying again…";

// A screen reader speaks whenever this line is written, so the same text is not written twice.
export function showStatus(text) {
  if (line.textContent !== text) line.textContent = text;
}
