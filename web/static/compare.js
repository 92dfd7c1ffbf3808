// Two answers at once, streaming. Without this script the same form posts and the page comes back.

import { LOST, address, post } from "./answering.js";

const form = document.querySelector("#compare-form");
const answers = document.querySelector("#answers");
const send = document.querySelector("#compare-send");
const stop = document.querySelector("#compare-stop");
const complaint = document.querySelector("#compare-problem");
const outline = document.querySelector("#sides-template");

let running = null;

function setRunning(controller) {
  running = controller;
  send.hidden = controller !== null;
  stop.hidden = controller === null;
  answers.setAttribute("aria-busy", String(controller !== null));
}

function complain(message) {
  complaint.textContent = message;
  complaint.hidden = !message;
}

function begin() {
  const sides = outline.content.cloneNode(true);
  [...sides.querySelectorAll("[data-title]")].forEach((title, side) => {
    const chosen = form.elements[side ? "right" : "left"];
    title.textContent = chosen.selectedOptions[0].textContent.replace(" (in service)", "");
  });
  answers.replaceChildren(sides);
  return [...answers.querySelectorAll("[data-answer]")];
}

function here(first, second) {
  const { left, right } = form.elements;
  return address(form, "/playground/compare", {
    left: left.value,
    right: right.value,
    ...(first && second ? { first, second } : {}),
  });
}

function show(first, second) {
  form.elements.first.value = first;
  form.elements.second.value = second;
  form.action = here(first, second);
  history.replaceState(null, "", form.action);
  const query = new URLSearchParams({ first, second });
  return htmx.ajax("GET", `/playground/compare/answers?${query}`, { target: answers, swap: "innerHTML" });
}

async function ask(fields) {
  const shown = begin();
  const texts = ["", ""];
  let end = { name: "problem", data: { message: LOST } };
  complain("");
  setRunning(new AbortController());
  try {
    for await (const event of post(form.action, fields, running.signal)) {
      if (event.name === "text") {
        texts[event.data.side] += event.data.text;
        shown[event.data.side].textContent = texts[event.data.side];
      } else {
        end = event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") end = { name: "stopped" };
  }
  if (end.name === "done") {
    await show(end.data.first, end.data.second);
  } else {
    form.elements.first.value = form.elements.second.value = "";
    if (end.name === "problem") complain(end.data.message);
    if (texts.some(Boolean) || end.name === "stopped") {
      const word = end.name === "stopped" ? "(stopped)" : "(cut off)";
      shown.forEach((answer, side) => {
        answer.textContent = `${texts[side]}${texts[side] ? " … " : ""}${word}`;
      });
    } else {
      answers.replaceChildren();
    }
  }
  setRunning(null);
}

function swap() {
  const { left, right, first, second } = form.elements;
  [left.value, right.value] = [right.value, left.value];
  if (first.value && second.value) {
    show(second.value, first.value);
  } else {
    answers.replaceChildren();
    history.replaceState(null, "", (form.action = here()));
  }
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    if (event.submitter?.name === "swap") swap();
    else if (form.elements.prompt.value.trim()) ask(new URLSearchParams(new FormData(form)));
  });

  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
}
