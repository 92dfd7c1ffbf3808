// Comforts of the queue: tick a whole page, days of the viewer's own zone, and a file that is too large is
// told before it is sent.

const zone = new Intl.DateTimeFormat().resolvedOptions().timeZone;
for (const field of document.querySelectorAll("[data-zone]")) field.value = zone;
for (const name of document.querySelectorAll("[data-zone-name]")) name.textContent = `in ${zone}`;

const all = document.querySelector("[data-tick-all]");
const boxes = [...document.querySelectorAll('input[name="id"]')];
if (all && boxes.length) {
  const tick = all.querySelector("input");
  const follow = () => {
    const ticked = boxes.filter((box) => box.checked).length;
    tick.checked = ticked === boxes.length;
    tick.indeterminate = ticked > 0 && ticked < boxes.length;
  };
  all.hidden = false;
  tick.addEventListener("change", () => {
    for (const box of boxes) box.checked = tick.checked;
  });
  for (const box of boxes) box.addEventListener("change", follow);
  follow();
}

for (const file of document.querySelectorAll("input[type=file][data-limit]")) {
  file.addEventListener("change", () => {
    const large = [...file.files].some(({ size }) => size > Number(file.dataset.limit));
    file.setCustomValidity(large ? file.dataset.tooLarge : "");
    file.reportValidity();
  });
}
