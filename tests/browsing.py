"""What the console's tests share: a past to show, and what may not be wrong with a page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.examples import NewExample

PHONE = (360, 800)
DESKTOP = (1280, 900)
AXE = (Path(__file__).parent / "console" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


# Colours change by a transition, however short, and what inherits them follows a frame later.
SETTLED = """async () => {
  for (let quiet = 0, frames = 0; quiet < 2 && frames < 60; frames++) {
    await new Promise(requestAnimationFrame);
    quiet = document.getAnimations().length ? 0 : quiet + 1;
  }
}"""


def violations(page: Page) -> list[str]:
    """What axe finds wrong with the page, a line each. Evaluated from outside: the policy stays as it is."""
    page.evaluate(f"() => {{ {AXE} }}")
    found = page.evaluate("() => axe.run()")
    return [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def check_sound(page: Page, name: str) -> None:
    """The page is accessible and fits, on desktop and phone, light and dark; a picture of each is kept."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for size in (DESKTOP, PHONE):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            where = f"{name}-{size[0]}-{scheme}"
            page.evaluate(SETTLED)
            found = violations(page)
            assert not found, f"{where}: {found}"
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], where
            page.screenshot(path=SCREENSHOTS / f"{where}.png", full_page=True)


def confirm(page: Page, act: str) -> None:
    """Press what asks once more, by the beginning of its name, and say yes."""
    asks = page.locator("details.confirm", has=page.locator("summary", has_text=re.compile(rf"^\s*{act}")))
    asks.first.locator("summary").click()
    asks.first.get_by_role("button", name="Yes,").click()


@contextmanager
def opened(home: Home) -> Iterator[Store]:
    """The store of a running box, from beside it."""
    store = Store.open(home)
    try:
        yield store
    finally:
        store.close()


REPORT = {
    "passed": True,
    "summary": "All checks passed.",
    "seconds": 31.5,
    "checks": [
        {
            "name": "heldout",
            "title": "Held-out loss",
            "measured": 2.1042,
            "reference": 2.6133,
            "limit": 2.6656,
            "passed": True,
            "detail": "10 examples it has not seen",
        },
        {
            "name": "perplexity",
            "title": "Generic text",
            "measured": 31.9,
            "reference": 23.2,
            "limit": 26.7,
            "passed": False,
            "detail": NASTY,
        },
    ],
    "answers": [
        {
            "question": "When is the bin collected?",
            "before": "It depends.",
            "after": "On Tuesday.",
            "expected": None,
        },
        {"question": NASTY, "before": NASTY, "after": NASTY, "expected": NASTY},
    ],
}


def add_adapter(home: Home, store: Store, bundle: Bundle, name: str, seed: int) -> None:
    """A small accepted adapter: known to the store before its file appears, as if a run had made it."""
    draft = home.root / f"{name}.safetensors"
    port = bundle.manifest.ports[-1]
    part = port.parts[0]
    random = np.random.default_rng(seed)
    tensors = {
        tensor_key(part.module, "A"): random.normal(0, 0.01, (2, port.inputs)).astype(np.float32),
        tensor_key(part.module, "B"): random.normal(0, 0.01, (part.out, 2)).astype(np.float32),
    }
    base = bundle.manifest.base_hash
    write_adapter(draft, tensors, AdapterMeta(base_hash=base, rank=2, alpha=2.0))
    made = read_adapter(draft, bundle.manifest)
    store.adapters.upsert(
        AdapterRow(name, time.time(), made.sha256, made.size, base, 2, None, None, "accepted", None)
    )
    draft.rename(home.adapters / draft.name)


FIRST, SECOND = "adapter_20261120T071500Z", "adapter_20261121T191433Z"


def give_past(home: Home, bundle: Bundle) -> None:
    """Runs, adapters and drafts to show, with hostile text in all that comes from people."""
    with opened(home) as store:
        add_adapter(home, store, bundle, FIRST, 1)
        add_adapter(home, store, bundle, SECOND, 2)
        withdrawn = store.adapters.get(SECOND)
        assert withdrawn is not None
        store.adapters.withdraw(SECOND, withdrawn.sha256, f"because of {NASTY}")
        for state, report in (("failed", None), ("rejected", REPORT)):
            run = store.runs.create("threshold", 100, parent=FIRST)
            store.runs.update(
                run.id,
                state=state,
                started=time.time() - 300,
                ended=time.time() - 60,
                report=report,
                reason=f"because of {NASTY}",
            )
        for target in (None, "The spare key is with the neighbours."):
            store.examples.add(
                NewExample(
                    kind="critique",
                    query=f"Where is the spare key? {NASTY}",
                    response=f"Under the mat. {NASTY}",
                    target=target,
                    weight=10.0,
                    messages=[{"role": "user", "content": f"Where is the spare key? {NASTY}"}],
                    feedback=f"Should be with the neighbours {NASTY}",
                    rating="down",
                    state="review",
                    note="no draft passed the check",
                )
            )
        store.completions.record(
            id="chatcmpl-shown",
            created=time.time(),
            device=None,
            model="m",
            adapter=None,
            query=f"And when is the bin collected? {NASTY}",
            response=f"It depends on your city. {NASTY}",
            messages=[
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": f"Paris. {NASTY}"},
                {"role": "user", "content": f"And when is the bin collected? {NASTY}"},
            ],
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
        )
