// Waits for the box: when it has been away and is ready again, the page goes where the owner came from.

const EVERY = 500;
const SURE = 30_000; // it may have been away between two looks
const LONG = 120_000;

const place = document.getElementById("restarting");
const began = performance.now();
let away = false;

async function look() {
  const waited = performance.now() - began;
  try {
    const answer = await fetch("/ready", { cache: "no-store" });
    if (answer.ok && (away || waited > SURE)) {
      location.replace(place.dataset.again);
      return;
    }
    away ||= !answer.ok;
  } catch {
    away = true;
  }
  if (waited > LONG) {
    document.getElementById("restarting-words").textContent =
      "The box is taking long. It may be importing a model. If it stays away, look at its log: logs/shammah.log in its home, or the system's journal.";
  }
  setTimeout(look, EVERY);
}

look();
