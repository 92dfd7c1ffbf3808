// Copy buttons beside a key and the command that uses it.

const copied = document.querySelector("#copied");

// On a network without HTTPS browsers give pages no clipboard, but still obey the old command.
async function copy(element) {
  if (navigator.clipboard) return navigator.clipboard.writeText(element.textContent);
  const selection = getSelection();
  selection.selectAllChildren(element);
  const done = document.execCommand("copy");
  selection.removeAllRanges();
  if (!done) throw new Error("not copied");
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await copy(document.getElementById(button.dataset.copy));
      copied.textContent = "Copied.";
      button.classList.add("done");
    } catch {
      copied.textContent = "Your browser did not let the page copy it. Select it and copy it yourself.";
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    }
  });
}
