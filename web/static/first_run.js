// An answer that streams. Without this script the form brings it with the next page.

const LOST = "The box did not answer. Check that it is on, then ask again.";

async function* deltas(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const data = JSON.parse(line.slice(6));
      if (data.error) throw new Error(data.error.message);
      yield data.choices[0]?.delta?.content ?? "";
    }
  }
}

// Whether it is a device's key at all: on the box itself the API would answer without one, too.
async function check(form) {
  const response = await fetch("/setup/key/check", {
    method: "POST",
    headers: { "HX-Request": "true" },
    body: new URLSearchParams({ key: form.elements.key.value }),
  });
  if (!response.ok) throw new Error(await response.text());
  return response.text();
}

async function ask(key, question, answer) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
    body: JSON.stringify({
      model: "shammah",
      messages: [{ role: "user", content: question }],
      stream: true,
      store: false, // trying it out is nothing to learn from
    }),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let text = "";
  for await (const piece of deltas(response.body)) {
    text += piece;
    if (text) answer.textContent = text;
  }
  if (!text) answer.textContent = "(It said nothing.)";
}

const form = document.querySelector("#try-form");

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { key, question } = form.elements;
  const place = document.querySelector("#try-answer");
  const button = document.querySelector("#try-ask");
  if (button.disabled) return;
  document.querySelector("#problem")?.remove();
  place.replaceChildren(document.querySelector("#try-template").content.cloneNode(true));
  const answer = place.querySelector(".answer");
  button.disabled = true;
  try {
    const device = await check(form);
    await ask(key.value.trim(), question.value, answer);
    const told = document.createElement("p");
    told.className = "rated";
    told.dir = "auto";
    told.setAttribute("role", "status");
    told.textContent = `The key works: the box was asked as ${device}.`;
    place.append(told);
    const done = document.querySelector("#try-done");
    done.textContent = "Done";
    done.classList.add("primary");
    button.classList.remove("primary");
  } catch (error) {
    answer.classList.add("problem");
    answer.setAttribute("role", "alert");
    answer.textContent = error instanceof TypeError ? LOST : error.message;
  } finally {
    answer.removeAttribute("aria-busy");
    button.disabled = false;
  }
});
