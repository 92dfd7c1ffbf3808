// The playground, streaming. Without this script the same form posts and the page comes back.

import { LOST, address, post } from "./answering.js";

const form = document.querySelector("#chat-form");
const box = form.elements.message;
const previous = form.elements.previous;
const transcript = document.querySelector("#transcript");
const fresh = document.querySelector("#chat-new");
const send = document.querySelector("#chat-send");
const stop = document.querySelector("#chat-stop");
const complaint = document.querySelector("#chat-problem");
const outline = document.querySelector("#exchange-template");

let running = null;

function follow() {
  transcript.scrollTop = transcript.scrollHeight;
}

function nearEnd() {
  return transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 80;
}

function setRunning(controller) {
  running = controller;
  send.hidden = controller !== null;
  stop.hidden = controller === null;
}

function complain(message) {
  complaint.textContent = message;
  complaint.hidden = !message;
}

// An article that the answer comes into; `before` is the one it stands in for when a question is asked anew.
function begin(question, before) {
  const article = outline.content.cloneNode(true).querySelector("article");
  article.querySelector("[data-question]").textContent = question;
  article.setAttribute("aria-busy", "true");
  document.querySelector("#chat-empty")?.remove();
  if (before) before.hidden = true;
  transcript.append(article);
  follow();
  return article;
}

async function ask(question, fields, before) {
  const article = begin(question, before);
  const answer = article.querySelector("[data-answer]");
  let text = "";
  let end = null;
  complain("");
  setRunning(new AbortController());
  try {
    for await (const event of post(form.action, fields, running.signal)) {
      const stick = nearEnd();
      if (event.name === "text") {
        text += event.data.text;
        answer.textContent = text;
      } else {
        end = event;
      }
      if (stick) follow();
    }
    end ??= { name: "problem", data: { message: LOST } };
  } catch (error) {
    const stopped = error.name === "AbortError";
    end = stopped ? { name: "stopped" } : { name: "problem", data: { message: LOST } };
  }
  article.removeAttribute("aria-busy");
  setRunning(null);
  if (end.name === "done") {
    before?.remove();
    await finish(article, end.data.id);
    return;
  }
  // The conversation is where it was: nothing that was written is lost.
  if (before) before.hidden = false;
  else if (!box.value) {
    box.value = question;
    box.dispatchEvent(new Event("input", { bubbles: true })); // typed, as far as keeping it goes
  }
  if (end.name === "problem") complain(end.data.message);
  if (text || (end.name === "stopped" && !before)) {
    answer.textContent = `${text}${text ? " … " : ""}${end.name === "stopped" ? "(stopped)" : "(cut off)"}`;
    article.classList.add("unfinished");
  } else {
    article.remove();
  }
}

async function finish(article, id) {
  previous.value = id;
  fresh.hidden = false;
  const adapter = form.elements.adapter.value;
  const here = address(form, "/playground", { chat: id, ...(adapter === "current" ? {} : { adapter }) });
  form.action = here;
  history.replaceState(null, "", here);
  const chat = encodeURIComponent(id);
  const stick = nearEnd();
  await htmx.ajax("GET", `/playground/exchange/${chat}`, { target: article, swap: "outerHTML" });
  if (stick) follow();
  await htmx.ajax("GET", `/playground/history?chat=${chat}`, { target: "#history", swap: "outerHTML" });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return;
  const fields = new URLSearchParams(new FormData(form, event.submitter));
  if (event.submitter?.name === "again") {
    const before = event.submitter.closest("article");
    ask(before.querySelector("[data-question]").textContent, fields, before);
    return;
  }
  const message = box.value.trim();
  if (!message) return;
  box.value = "";
  ask(message, fields, null);
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

function halt() {
  running?.abort();
  box.focus();
}

stop.addEventListener("click", halt);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) halt();
});

follow();
