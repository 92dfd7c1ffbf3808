// Small comforts for pages that work without any script: times in the viewer's zone, buttons that
// show they were pressed. Live parts are htmx attributes in the templates.

import { onReturn } from "./reach.js";
import { refresh } from "./session.js";

onReturn(refresh);

const RELATIVE_EVERY = 30_000;
// One format, in the language of the viewer, with as much of it as a place needs.
const DAY = { day: "numeric", month: "short" };
const TIME = { hour: "numeric", minute: "2-digit" };
const format = (options) => new Intl.DateTimeFormat(undefined, options);
const short = format({ ...DAY, ...TIME });
const seconds = format({ ...DAY, ...TIME, second: "2-digit" });
const full = format({ ...DAY, year: "numeric", ...TIME });
const day = format(DAY);
const utcDay = format({ ...DAY, timeZone: "UTC" });
const thisYear = (moment) => moment.getFullYear() === new Date().getFullYear();

// So that the box counts days as the viewer does.
const zone = new Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone) document.cookie = `shammah-zone=${encodeURIComponent(zone)}; path=/; max-age=31536000; samesite=strict`;

function span(seconds) {
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  const days = Math.floor(hours / 24);
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (hours < 24) return hours < 6 && minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return days === 1 ? "1 day" : `${days} days`;
}

function ago(moment) {
  const away = (moment - Date.now()) / 1000;
  if (away > -10 && away <= 0) return "just now";
  return away < 0 ? `${span(-away)} ago` : `in ${span(away)}`;
}

const styles = {
  ago,
  exact: (moment) => seconds.format(moment),
  short: (moment) => (thisYear(moment) ? short : full).format(moment),
  full: (moment) => full.format(moment),
  day: (moment) => day.format(moment),
  "utc-day": (moment) => utcDay.format(moment),
};

function showTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    time.title = full.format(moment);
    time.textContent = styles[time.dataset.style](moment);
  }
}

showTimes();
setInterval(showTimes, RELATIVE_EVERY);
document.addEventListener("htmx:after:swap", () => showTimes());

// What the owner has begun to write is not refreshed away under the pen.
document.addEventListener("input", (event) => {
  event.target.closest("[data-keep-edits]")?.setAttribute("hx-morph-skip", "");
});

// A form that leads to a new page: one press is enough, however long the box takes.
document.addEventListener("submit", (event) => {
  const { submitter } = event;
  if (event.defaultPrevented || !submitter || submitter.form?.hasAttribute("hx-post")) return;
  // After the browser has gathered the form: a disabled button's value would not be sent.
  setTimeout(() => {
    submitter.disabled = true;
    submitter.setAttribute("aria-busy", "true");
  });
});

// Coming back with the browser's back button shows the page as it was left.
window.addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const button of document.querySelectorAll("button[aria-busy]")) {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
});
