// Server-sent events: opens a stream, opens it again when it breaks, and shows in the page's status line how it is.

import { CONNECTION_LOST, LIVE, showStatus } from "./status.mjs";

const REOPEN_MS = 3000;

/**
 * Subscribes to the events of an address until the page is left or the returned function is called.
 *
 * `handlers` maps the name of an event to a function that gets its data. `onOpen` is called each time a connection
 * stands, the first time included.
 */
export function subscribe(url, handlers, onOpen = () => {}) {
  let source, timer;
  let last = "";
  const open = () => {
    const address = new URL(url, location.href);
    if (last) address.searchParams.set("last_event_id", last);
    source = new EventSource(address);
    source.addEventListener("open", () => {
      showStatus(LIVE);
      onOpen();
    });
    source.addEventListener("error", () => {
      showStatus(CONNECTION_LOST);
      // A browser reconnects by itself after a lost connection, and names the last event it saw in a header. It gives up
      // when the answer is an error, as 503 is; a new source cannot set the header and names the event in its address.
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, REOPEN_MS);
    });
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        last = event.lastEventId || last;
        showStatus(LIVE);
        handle(event.data);
      });
    }
  };
  const close = () => {
    clearTimeout(timer);
    source.close();
  };
  open();
  addEventListener("pagehide", close);
  return close;
}
