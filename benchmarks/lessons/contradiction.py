"""(d) contradiction: one correction of high weight against ten exchanges that say something else.

For each fact, devices ask its question three times, in its five other wordings and in two more, and
always get the same wrong answer; a person corrects one of the first. Through real collection,
feedback, selection and trainer; the correction wins when its question gets the corrected answer.
Several facts share a run: what selection and supersession compare is the question, and no two facts
have one in common, so each trial stands alone there; they do share the adapter.
"""

from __future__ import annotations

from lessons.answers import Answer
from lessons.bench import Bench, took
from lessons.data import Fact, load_facts

NAME = "contradiction"


def contradicting(fact: Fact) -> list[str]:
    """The ten questions that get the wrong answer, the corrected one among them."""
    bare = fact.ask[0].lower() + fact.ask[1:]
    return [*[fact.ask] * 3, *fact.unseen, f"Please help me: {bare}", f"I was just asked this. {fact.ask}"]


def run(bench: Bench, *, runs: int, facts: int, everyday: int) -> None:
    """`runs` runs of `facts` trials each, every run with another seed."""
    everything = load_facts()
    for number in range(runs):
        chosen = [everything[(number * facts + at) % len(everything)] for at in range(facts)]
        with bench.box(seed=bench.seed + number) as box:
            bench.everyday(box, everyday, start=number * everyday)
            for fact in chosen:
                for question in contradicting(fact):
                    box.exchange(question, Answer(fact.wrong, "stop"))
            for fact in chosen:
                box.correct(fact.ask, fact.wrong, fact.answer)
            queued = box.store.examples.count("pending")
            attempt = box.learn(attempts=1)[0]
            bench.exam.use(attempt.adapter)
            answers = bench.exam.ask([fact.ask for fact in chosen])
            won = [fact.known(answer) for fact, answer in zip(chosen, answers, strict=True)]
            bench.add(
                {
                    "scenario": NAME,
                    "seed": bench.seed,
                    "run": number + 1,
                    "runs": runs,
                    "facts": facts,
                    "everyday": everyday,
                    **took(attempt),
                    "queued": queued,
                    "left_out": (attempt.run.metrics or {}).get("left_out", {}),
                    "won": [sum(won), len(won)],
                    "unseen": bench.exam.unseen(chosen).pair,
                    "lost_to": {
                        fact.ask: answer
                        for fact, answer, good in zip(chosen, answers, won, strict=True)
                        if not good
                    },
                    **bench.exam.general(),
                }
            )
