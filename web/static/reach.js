// Whether the box can be reached. When it cannot, a banner says so and from when what is shown is; when it
// is back, the banner goes and the page is renewed.

const QUIET_SECONDS = 15; // the live connection ticks every five
const PROBE_SECONDS = 4;
const AGAIN = 2_000;
const LEAVING = 5_000;

const banner = document.querySelector("#lost");
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
let heard = Date.now();
let leaving = false;
let probing = false;
let renew = () => {};

/** What to do when the box is back. */
export function onReturn(act) {
  renew = act;
}

async function answers() {
  try {
    await fetch("/health", { method: "GET", cache: "no-store", signal: AbortSignal.timeout(1000 * PROBE_SECONDS) });
    return true; // whatever it says: it is there
  } catch {
    return false;
  }
}

const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time));

/** Something did not come through: look whether the box is there. */
export async function doubt() {
  if (!banner || probing || leaving) return;
  probing = true;
  const from = heard;
  let lost = false;
  while (!(await answers())) {
    if (leaving) break; // the browser ended it, as it goes to another page
    if (!lost) {
      lost = true;
      banner.querySelector("[data-since]").textContent = clock.format(from);
      banner.hidden = false;
      document.documentElement.dataset.lost = "";
    }
    await sleep(AGAIN);
  }
  probing = false;
  heard = Date.now();
  if (!lost) return;
  banner.hidden = true;
  delete document.documentElement.dataset.lost;
  renew();
}

// A file to download is no leaving: after a while the page is still there.
addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => (leaving = false), LEAVING);
});
addEventListener("pagehide", () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));
addEventListener("offline", doubt);

for (const sign of ["htmx:sse:after:message", "htmx:sse:after:connection", "htmx:after:request"]) {
  document.addEventListener(sign, () => (heard = Date.now()));
}
document.addEventListener("htmx:sse:error", (event) => {
  if (!event.detail?.status) doubt();
});
document.addEventListener("htmx:error", (event) => {
  if (event.detail?.error instanceof TypeError) doubt();
});
// A cable that is pulled out says nothing. A page in the background does not listen.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) doubt();
});
setInterval(() => {
  if (!document.hidden && document.body._htmx?.sse && Date.now() - heard > 1000 * QUIET_SECONDS) doubt();
}, 1000 * PROBE_SECONDS);
