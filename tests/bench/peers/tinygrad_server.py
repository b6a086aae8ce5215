"""Starts tinygrad's own chat server on the default model. Run by the python of its own virtual environment.

Its tokenizer knows presets by name and refuses that of this model, `smollm`; that of qwen2 has the same chat format.
By itself it would listen on all addresses of the machine.
"""

from typing import Any

from tinygrad.llm import cli


class LoopbackServer(cli.LLMServer):  # type: ignore[misc]
    """The server, on loopback only."""

    def __init__(self, address: tuple[str, int], *rest: Any) -> None:
        super().__init__(("127.0.0.1", address[1]), *rest)


def main() -> None:
    """Run its own command line with these two differences."""
    known = cli.SimpleTokenizer.from_gguf_kv
    cli.SimpleTokenizer.from_gguf_kv = staticmethod(lambda facts: known({**facts, "tokenizer.ggml.pre": "qwen2"}))
    cli.LLMServer = LoopbackServer
    cli.main()


if __name__ == "__main__":
    main()
