// The session may end while somebody types. Then the page stays, asks for the password, and goes on with
// what was pressed. What was typed is also kept in this tab, without secrets, until it has been sent: a
// reload leads over the login back to it.

import { doubt } from "./reach.js";

const CHECK_SECONDS = 8;
const SAVE_AFTER = 150;
const DRAFTS = "drafts";
const WHICH = ["id", "completion_id", "conversation", "name", "section"];
const OWN_ENDS = ["/login", "/logout"];

// -- what was typed -----------------------------------------------------------------------

const secret = (field) =>
  field.type === "password" || field.type === "file" || field.type === "hidden" || field.autocomplete.includes("password") || "secret" in field.dataset;

const typedInto = (form) =>
  [...form.elements].filter((field) => field.name && field.matches("input, textarea, select") && field.type !== "submit" && field.type !== "hidden");

function touched(field) {
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  if (field.tagName !== "SELECT") return field.value !== field.defaultValue;
  const first = [...field.options].findIndex((option) => option.defaultSelected);
  return field.selectedIndex !== Math.max(first, 0);
}

const sent = new WeakSet(); // by a script, and still on the page

const forms = () =>
  [...document.querySelectorAll("main form")].filter((form) => form.method === "post" && !("login" in form.dataset) && !sent.has(form));

/** Whether leaving the page would lose something: a field that was changed, or an answer under way. */
export function unsaved() {
  if (document.querySelector("main article[aria-busy=true], #answers[aria-busy=true]")) return true;
  return forms().some((form) => typedInto(form).some(touched));
}

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFTS)) ?? {};
  } catch {
    return {};
  }
}

function write(drafts) {
  try {
    if (Object.keys(drafts).length) sessionStorage.setItem(DRAFTS, JSON.stringify(drafts));
    else sessionStorage.removeItem(DRAFTS);
  } catch {
    // Too much, or not allowed here: the page itself still holds what was typed.
  }
}

// The same form on the page that comes back: by where it leads and what it is about.
function nameOf(form) {
  const about = WHICH.map((name) => form.querySelector(`input[type=hidden][name="${name}"]`)?.value ?? "");
  return [new URL(form.action).pathname, ...about].join(" ");
}

const places = (form) => {
  const seen = {};
  return typedInto(form).map((field) => [field, `${field.name} ${(seen[field.name] = (seen[field.name] ?? -1) + 1)}`]);
};

function save() {
  const drafts = read();
  const here = {};
  for (const form of forms()) {
    const kept = places(form).filter(([field]) => touched(field) && !secret(field));
    if (!kept.length) continue;
    here[nameOf(form)] ??= Object.fromEntries(
      kept.map(([field, place]) => [place, field.type === "checkbox" || field.type === "radio" ? field.checked : field.value]),
    );
  }
  delete drafts[location.pathname];
  if (Object.keys(here).length) drafts[location.pathname] = { forms: here };
  write(drafts);
}

function restore() {
  const drafts = read();
  if (document.querySelector("form[data-login]")) {
    // The session has ended, so whoever comes back finds what was begun.
    for (const draft of Object.values(drafts)) draft.kept = !draft.sent;
    write(drafts);
    return;
  }
  const draft = drafts[location.pathname];
  if (!draft) return;
  // What was sent and refused with a word at the top is there again, to be put right.
  if (draft.kept || (draft.sent && document.querySelector(".flash-bad[role=alert]"))) {
    for (const form of forms()) {
      const values = draft.forms[nameOf(form)];
      if (!values) continue;
      for (const [field, place] of places(form)) {
        if (!(place in values) || secret(field)) continue;
        if (typeof values[place] === "boolean") field.checked = values[place];
        else field.value = values[place];
      }
      for (let fold = form.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
      form.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
  save();
}

let saving = 0;
document.addEventListener("input", (event) => {
  sent.delete(event.target.form ?? event.target);
  clearTimeout(saving);
  saving = setTimeout(save, SAVE_AFTER);
});
document.addEventListener("change", save);

document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
  if (ctx.response.status >= 400 || !ctx.sourceElement.matches?.("form")) return;
  sent.add(ctx.sourceElement);
  save();
});

// -- logging in, in place -----------------------------------------------------------------

const template = document.querySelector("#login-template");
const notice = document.querySelector("#logged-out");
let asking = null;
let declined = false;

const loginPath = () => `/login?next=${encodeURIComponent(location.pathname + location.search)}`;

/** True while the session goes on, false when it has ended, null when the box does not answer. */
async function alive() {
  try {
    const answer = await fetch("/console/session", {
      headers: { "HX-Request": "true" },
      cache: "no-store",
      signal: AbortSignal.timeout(1000 * CHECK_SECONDS),
    });
    return answer.status !== 401;
  } catch (error) {
    return error.name === "TimeoutError" ? true : null; // slow is not away
  }
}

/** Ask for the password in a dialog. Resolves to whether the owner is logged in now. */
export function logIn() {
  if (!template) {
    // The box had no password when this page was made. What was being sent is back in its field by the time of leaving.
    addEventListener("pagehide", save, { once: true });
    location.assign(loginPath());
    return Promise.resolve(false);
  }
  asking ??= new Promise((resolve) => {
    const dialog = template.content.cloneNode(true).querySelector("dialog");
    const form = dialog.querySelector("form");
    const problem = dialog.querySelector("[role=alert]");
    const tell = (message) => {
      problem.textContent = message;
      problem.hidden = !message;
    };
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      tell("");
      try {
        const answer = await fetch(form.action, {
          method: "POST",
          headers: { "HX-Request": "true" },
          body: new URLSearchParams(new FormData(form)),
        });
        if (answer.ok) return dialog.close("in");
        tell(await answer.text());
      } catch {
        tell("The box cannot be reached. Try again when it is back.");
      }
      form.elements.password.value = "";
      form.elements.password.focus();
    });
    dialog.querySelector("[data-later]").addEventListener("click", () => dialog.close());
    // Perhaps it was done in another tab.
    const look = async () => {
      if (!document.hidden && (await alive())) dialog.close("in");
    };
    addEventListener("focus", look);
    document.addEventListener("visibilitychange", look);
    dialog.addEventListener("close", () => {
      removeEventListener("focus", look);
      document.removeEventListener("visibilitychange", look);
      dialog.remove();
      asking = null;
      declined = dialog.returnValue !== "in";
      notice.hidden = !declined;
      if (!declined) refresh();
      resolve(!declined);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** Show what is on the page as it is now, and follow it again. */
export function refresh() {
  if (!window.htmx) return;
  const live = document.body._htmx?.sse;
  if (live) {
    live.delayCanceller?.();
    window.htmx.trigger(document.body, "box-all");
  } else if (document.body.hasAttribute("hx-sse:connect") && !unsaved()) {
    location.reload();
  }
}

// A live part is told that the session has ended. Nothing typed: the login; it leads back here.
function ended() {
  if (asking || declined || !template) return;
  if (unsaved()) {
    save();
    logIn();
  } else {
    location.assign(loginPath());
  }
}

notice?.querySelector("button").addEventListener("click", logIn);

document.addEventListener("htmx:sse:error", (event) => {
  if (event.detail?.status === 401) ended();
});

document.addEventListener("htmx:before:response", async (event) => {
  const { response, request, sourceElement, sourceEvent } = event.detail.ctx;
  if (response.status < 400) return;
  const post = (request?.method ?? "GET").toUpperCase() === "POST";
  if (response.status !== 401) {
    if (!post) event.preventDefault(); // what is shown stays, rather than the reason why it could not be renewed
    return;
  }
  event.preventDefault();
  if (!post) return ended();
  if (sourceElement.matches("form") && (await logIn())) sourceElement.requestSubmit(sourceEvent?.submitter);
});

// -- sending ------------------------------------------------------------------------------

const looking = new WeakSet();
const passed = new WeakSet();

// A form that leads to another page is sent once it is sure that its page can take it.
document.addEventListener("submit", async (event) => {
  const { target: form, submitter } = event;
  const end = new URL(submitter?.getAttribute("formaction") ?? form.action, location.href).pathname;
  if (end === "/logout") write({});
  if (event.defaultPrevented) setTimeout(save); // a script sends it, and has emptied what it took
  if (event.defaultPrevented || form.method !== "post" || OWN_ENDS.includes(end) || !template) return;
  if (form.hasAttribute("hx-post")) return;
  if (passed.delete(form)) {
    clearTimeout(saving);
    save();
    const drafts = read();
    const mine = drafts[location.pathname]?.forms[nameOf(form)];
    if (mine) write({ ...drafts, [location.pathname]: { forms: { [nameOf(form)]: mine }, sent: true } });
    return;
  }
  event.preventDefault();
  if (looking.has(form)) return;
  looking.add(form);
  submitter?.setAttribute("aria-busy", "true");
  let fit = await alive();
  if (fit === null) doubt(); // the banner says why nothing happens
  else if (!fit) fit = await logIn();
  looking.delete(form);
  submitter?.removeAttribute("aria-busy");
  if (!fit || !form.isConnected) return;
  passed.add(form);
  form.requestSubmit(submitter?.isConnected ? submitter : null);
  passed.delete(form); // when it was not sent: a field is not valid any more
});

restore();
