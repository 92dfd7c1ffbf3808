// What the playground's pages share: reading an answer as it comes, times in a list to choose from.

import { logIn } from "./session.js";

export const LOST = "The connection to the box was lost. Check that it is on, then send again.";
const LOGGED_OUT = "Your session has ended. Log in, then send this once more.";

/** The events of an answer to a form: `{name, data}`. */
export async function* post(address, fields, signal) {
  const options = { method: "POST", headers: { Accept: "text/event-stream", "HX-Request": "true" }, body: fields, signal };
  let response = await fetch(address, options);
  if (response.status === 401 && (await logIn())) response = await fetch(address, options);
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    yield { name: "problem", data: { message: response.status === 401 ? LOGGED_OUT : LOST } };
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
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

/** The fields of a form that an address carries, with others before them. */
export function address(form, path, first) {
  const query = new URLSearchParams(first);
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const value = form.elements[name].value.trim();
    if (value) query.set(name, value);
  }
  return `${path}?${query}`;
}

const moment = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });

for (const option of document.querySelectorAll("option")) {
  const [, utc] = /Learned (.* UTC)/.exec(option.textContent) ?? [];
  const made = /adapter_(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)/.exec(option.dataset.adapter ?? "");
  if (!utc || !made) continue;
  const [, year, month, day, hour, minute] = made.map(Number);
  option.textContent = option.textContent.replace(utc, moment.format(Date.UTC(year, month - 1, day, hour, minute)));
}
