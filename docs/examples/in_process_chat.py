"""A conversation in this process: python in_process_chat.py [MODEL]; an empty line ends it."""

import sys

from fieldlm import Model
from fieldlm.inference.chat_template import Message


def main(name: str) -> None:
    said: list[Message] = [{"role": "system", "content": "You answer in one short sentence."}]
    with Model.open(name) as model:
        print(model, file=sys.stderr)
        while question := read():
            said.append({"role": "user", "content": question})
            answer = ""
            for chunk in model.stream(said, max_tokens=64):
                print(chunk.text, end="", flush=True)
                answer += chunk.text
            print()
            said.append({"role": "assistant", "content": answer})


def read() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
