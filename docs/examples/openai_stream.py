"""The openai client: python openai_stream.py [URL]. A stream, its usage, and a stream that is stopped early."""

import sys

from openai import OpenAI


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id

    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Name three colours."}],
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        elif chunk.usage:
            print(f"\n{chunk.usage.prompt_tokens} tokens read, {chunk.usage.completion_tokens} written")

    # Leaving the block closes the connection, and the server stops computing.
    words = ""
    with client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Tell a long story."}], stream=True
    ) as stream:
        for chunk in stream:
            words += chunk.choices[0].delta.content or ""
            if len(words) > 40:
                break
    print(f"stopped after: {words!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080")
