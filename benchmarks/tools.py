"""Whether the model calls a tool when it should, with `tool_choice: "auto"`, and only then.

    .venv/bin/python benchmarks/tools.py [--bundle DIR] [--threads N] [--json FILE]

Asks the daemon over HTTP, greedily, questions that need one of several tools and as many that need none,
and prints every one with what was called. Nothing here was used to choose how messages are judged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from contestants import ours, running

from appliance.home import Home
from appliance.model.bundle import load_bundle
from appliance.model.importer import import_model
from appliance.model.source import DEFAULT

MAX_TOKENS = 60


@dataclass(frozen=True)
class Question:
    """What is asked, the tool that it needs if any, and what its arguments should speak of."""

    text: str
    tool: str | None = None
    about: str = ""


@dataclass(frozen=True)
class Result:
    """What came of a question."""

    question: str
    needs: str | None
    called: tuple[str, ...]
    arguments: str
    plausible: bool

    @property
    def right(self) -> bool:
        return self.called[:1] == ((self.needs,) if self.needs else ())


def tool(name: str, description: str, **types: str) -> dict[str, Any]:
    """A function whose arguments are all needed."""
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in types.items()},
        "required": list(types),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


HOUSEHOLD = [
    tool("get_forecast", "Get the weather forecast for a place.", place="string"),
    tool("play_music", "Play music by an artist or of a genre.", what="string"),
    tool("set_thermostat", "Set the temperature of the heating in a room.", room="string", celsius="number"),
    tool("add_to_shopping_list", "Add an item to the shopping list.", item="string"),
    tool("lock_door", "Lock or unlock a door of the house.", door="string", locked="boolean"),
]
TRAVEL = [
    tool("find_train", "Look up train connections between two cities.", start="string", end="string"),
    tool("book_table", "Book a table in a restaurant.", restaurant="string", people="integer"),
    tool("translate_text", "Translate a text into another language.", text="string", language="string"),
    tool("get_local_time", "Get the present local time in a city.", city="string"),
]
QUESTIONS: list[tuple[list[dict[str, Any]], list[Question]]] = [
    (
        HOUSEHOLD,
        [
            Question("Will it rain in Hamburg tomorrow?", "get_forecast", "hamburg"),
            Question("What is the weather going to be like in Rome?", "get_forecast", "rome"),
            Question("Play some jazz.", "play_music", "jazz"),
            Question("I would like to hear the Beatles.", "play_music", "beatles"),
            Question("Set the heating in the bathroom to 22 degrees.", "set_thermostat", "bathroom"),
            Question("It is too cold in the bedroom, make it warmer.", "set_thermostat", "bedroom"),
            Question("Put milk on the shopping list.", "add_to_shopping_list", "milk"),
            Question("We need more eggs.", "add_to_shopping_list", "egg"),
            Question("Lock the front door, please.", "lock_door", "front"),
            Question("Hi there!"),
            Question("Thank you very much."),
            Question("Tell me a story about a dragon."),
            Question("Who painted the Mona Lisa?"),
            Question("What is the capital of Japan?"),
            Question("How many legs does a spider have?"),
            Question("Why do cats purr?"),
            Question("Write a birthday greeting for my sister."),
            Question("What is the boiling point of water?"),
        ],
    ),
    (
        TRAVEL,
        [
            Question("When does the next train from Berlin to Munich leave?", "find_train", "munich"),
            Question("How do I get from Lyon to Paris by train?", "find_train", "lyon"),
            Question("Book a table for four at Da Mario.", "book_table", "mario"),
            Question("Reserve a table for two at the Blue Fox tonight.", "book_table", "fox"),
            Question("Translate 'good morning' into French.", "translate_text", "good morning"),
            Question("How do you say 'thank you' in Japanese?", "translate_text", "thank you"),
            Question("What time is it in Tokyo?", "get_local_time", "tokyo"),
            Question("Tell me the time in New York.", "get_local_time", "new york"),
            Question("Good evening."),
            Question("That was helpful, thanks."),
            Question("What is gravity?"),
            Question("Who was the first person on the moon?"),
            Question("Give me an idea for a weekend project."),
            Question("Explain what a volcano is."),
            Question("What is 12 + 30?"),
            Question("Do you like music?"),
        ],
    ),
]


async def ask(client: httpx.AsyncClient, tools: list[dict[str, Any]], question: Question) -> Result:
    """One question with the tools at hand."""
    body = {
        "model": "shammah",
        "messages": [{"role": "user", "content": question.text}],
        "tools": tools,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "store": False,
    }
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    message = response.json()["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    arguments = calls[0]["arguments"] if calls else ""
    plausible = bool(calls) and question.about.lower() in arguments.lower()
    return Result(question.text, question.tool, tuple(call["name"] for call in calls), arguments, plausible)


async def measure(options: argparse.Namespace) -> list[Result]:
    """All questions, one after the other."""
    bundle = (
        load_bundle(options.bundle)
        if options.bundle
        else import_model(DEFAULT, Home(options.cache.absolute()))
    )
    results = []
    with tempfile.TemporaryDirectory() as temp:
        async with running(ours(bundle, options.threads), Path(temp) / "home") as server:
            url = f"http://127.0.0.1:{server.endpoint.port}"
            async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
                for tools, questions in QUESTIONS:
                    for question in questions:
                        results.append(await ask(client, tools, question))
                        show(results[-1])
    return results


def show(result: Result) -> None:
    called = ", ".join(result.called) or "-"
    mark = "" if result.right else "WRONG"
    print(
        f"{result.question:56}{result.needs or '-':22}{called:22}{mark:6}{result.arguments[:60]}", flush=True
    )


def summary(results: list[Result]) -> dict[str, int]:
    """The figures."""
    needed = [result for result in results if result.needs]
    free = [result for result in results if not result.needs]
    return {
        "needed": len(needed),
        "called": sum(bool(result.called) for result in needed),
        "right_tool": sum(result.right for result in needed),
        "plausible_arguments": sum(result.right and result.plausible for result in needed),
        "free": len(free),
        "false_calls": sum(bool(result.called) for result in free),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the default model)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the default one is kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    print(f"{'question':56}{'needs':22}{'called':22}")
    results = asyncio.run(measure(options))
    figures = summary(results)
    print(
        f"\nOf {figures['needed']} that need a tool {figures['called']} called one, {figures['right_tool']} "
        f"the right one, {figures['plausible_arguments']} with plausible arguments; of {figures['free']} "
        f"that need none {figures['false_calls']} called one."
    )
    if options.json:
        data = {**figures, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
