// The playground, streaming. Without this script the same form posts and the page comes back.

const form = document.querySelector("#chat-form");
const box = form.querySelector("textarea");
const previous = form.elements.previous;
const transcript = document.querySelector("#transcript");
const fresh = document.querySelector("#chat-new");
const send = document.querySelector("#chat-send");
const stop = document.querySelector("#chat-stop");
const outline = document.querySelector("#exchange-template");

const LOST = "The connection to the box was lost. Check that it is on, then send again.";

let running = null;

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (name && data) yield { name, data: JSON.parse(data) };
    }
  }
}

function follow() {
  transcript.scrollTop = transcript.scrollHeight;
}

function nearEnd() {
  return transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 80;
}

function problem(answer, message) {
  answer.classList.add("problem");
  answer.textContent = message;
}

function setRunning(controller) {
  running = controller;
  send.hidden = controller !== null;
  stop.hidden = controller === null;
}

async function ask(message) {
  const article = outline.content.cloneNode(true).querySelector("article");
  const answer = article.querySelector("[data-answer]");
  article.querySelector("[data-question]").textContent = message;
  article.setAttribute("aria-busy", "true");
  document.querySelector("#chat-empty")?.remove();
  transcript.append(article);
  follow();
  setRunning(new AbortController());
  let text = "";
  let ended = false;
  try {
    const response = await fetch(form.action, {
      method: "POST",
      headers: { Accept: "text/event-stream" },
      body: new URLSearchParams({ message, previous: previous.value }),
      signal: running.signal,
    });
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      // Most likely the session has ended: the page itself will say.
      location.reload();
      return;
    }
    for await (const { name, data } of eventsOf(response.body)) {
      const stick = nearEnd();
      if (name === "text") {
        text += data.text;
        answer.textContent = text;
      } else if (name === "problem") {
        ended = true;
        problem(answer, data.message);
      } else if (name === "done") {
        ended = true;
        await finish(article, data.id);
      }
      if (stick) follow();
    }
    if (!ended) problem(answer, LOST);
  } catch (error) {
    if (error.name === "AbortError") {
      answer.textContent = text ? `${text} … (stopped)` : "(stopped)";
    } else {
      problem(answer, LOST);
    }
  } finally {
    article.removeAttribute("aria-busy");
    setRunning(null);
  }
}

async function finish(article, id) {
  previous.value = id;
  fresh.hidden = false;
  history.replaceState(null, "", `/playground?chat=${encodeURIComponent(id)}`);
  await htmx.ajax("GET", `/playground/exchange/${encodeURIComponent(id)}`, { target: article, swap: "outerHTML" });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const message = box.value.trim();
  if (running || !message) return;
  box.value = "";
  ask(message);
});

box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

// The forms behind the thumb open inside the scrolled conversation: bring them into it.
transcript.addEventListener(
  "toggle",
  (event) => {
    if (event.target.open) event.target.lastElementChild.scrollIntoView({ block: "nearest" });
  },
  true,
);

stop.addEventListener("click", () => {
  running?.abort();
  box.focus();
});

follow();
