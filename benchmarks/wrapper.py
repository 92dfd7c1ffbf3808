"""A small OpenAI server around a library that has none: one request at a time, as the library answers.

    python wrapper.py {genai,transformers} --model DIR --port N --threads N

Runs in the peers' environment and imports nothing of ours. It never stops early (no end token), keeps
nothing between requests, and decodes by the library's shortest loop, which is to its advantage.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Library(Protocol):
    """A model that continues tokens."""

    def generate(self, prompt: list[int], count: int) -> Iterator[int]:
        """`count` sampled tokens."""
        ...


class Genai:
    """onnxruntime-genai."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        config = onnxruntime_genai.Config(str(model))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(options))
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompt: list[int], count: int) -> Iterator[int]:
        params = self._genai.GeneratorParams(self._model)
        length = len(prompt) + count
        params.set_search_options(
            min_length=length, max_length=length, do_sample=True, temperature=1.0, top_k=40, random_seed=7
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(prompt)
        for _ in range(count):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])


class Transformers:
    """transformers on torch, fp32."""

    def __init__(self, model: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        torch.set_num_threads(threads)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
        self._model = loaded.eval()

    def generate(self, prompt: list[int], count: int) -> Iterator[int]:
        torch = self._torch
        tokens, past = torch.tensor([prompt]), None
        for _ in range(count):
            with torch.inference_mode():
                out = self._model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
                past = out.past_key_values
                tokens = torch.multinomial(out.logits[:, -1].softmax(-1), 1)
            yield int(tokens)


LIBRARIES = {"genai": Genai, "transformers": Transformers}


class Server(ThreadingHTTPServer):
    """Serves one library."""

    daemon_threads = True

    def __init__(self, port: int, library: Library, model: Path) -> None:
        self.library = library
        self.turn = threading.Lock()
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        template = (model / "chat_template.jinja").read_text(encoding="utf-8")
        self.template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
            template
        )
        super().__init__(("127.0.0.1", port), Handler)


class Handler(BaseHTTPRequestHandler):
    """One request; the connection closes after it."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path == "/v1/chat/completions"
        text = (
            self.server.template.render(messages=body["messages"], add_generation_prompt=True)
            if chat
            else body["prompt"]
        )
        prompt = self.server.tokenizer.encode(text, add_special_tokens=False).ids
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        decoder, count = DecodeStream(skip_special_tokens=True), 0
        try:
            with self.server.turn:
                for token in self.server.library.generate(prompt, body["max_tokens"]):
                    count += 1
                    if piece := decoder.step(self.server.tokenizer, token):
                        self._send({"choices": [{"delta": {"content": piece}} if chat else {"text": piece}]})
            usage = {"prompt_tokens": len(prompt), "completion_tokens": count}
            self._send({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    library = LIBRARIES[options.library](options.model, options.threads)
    Server(options.port, library, options.model).serve_forever()


if __name__ == "__main__":
    main()
