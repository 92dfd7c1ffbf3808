// Buttons that copy: a key, a small program, an answer. Without this script they are not shown.

// Outside https and loopback a page has no clipboard of its own, but still obeys the old command.
async function copy(source) {
  if (navigator.clipboard) return navigator.clipboard.writeText(source.textContent);
  const marked = getSelection();
  marked.selectAllChildren(source);
  const done = document.execCommand("copy");
  marked.removeAllRanges();
  if (!done) throw new Error("refused");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const id = button.dataset.copy;
  const source = id ? document.getElementById(id) : button.closest("article").querySelector("[data-copied]");
  if (!source) return;
  const label = button.querySelector("span");
  try {
    await copy(source);
    label.textContent = "Copied";
    button.classList.add("copied");
  } catch {
    // It is marked for the keyboard, at least.
    getSelection().selectAllChildren(source);
    label.textContent = "Marked: copy it yourself";
  }
  button.title = label.textContent;
  button.focus(); // some browsers do not, and whoever listens then hears the new label
});
document.documentElement.dataset.scripts = "";
