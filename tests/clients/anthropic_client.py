"""anthropic: a message, a stream, a forced call, counted tokens."""

import sys

from anthropic import Anthropic

url, model = sys.argv[1:3]
client = Anthropic(base_url=url, api_key="none", max_retries=0)
asked = [{"role": "user", "content": "Name a colour."}]
schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
assert client.messages.create(model=model, max_tokens=8, messages=asked).content[0].text
with client.messages.stream(model=model, max_tokens=8, messages=asked) as stream:
    assert "".join(stream.text_stream)
called = client.messages.create(
    model=model,
    max_tokens=64,
    messages=asked,
    tools=[{"name": "switch", "input_schema": schema}],
    tool_choice={"type": "tool", "name": "switch"},
)
assert isinstance(called.content[0].input["on"], bool)
assert client.messages.count_tokens(model=model, messages=asked).input_tokens > 4
print("message, stream, call, count")
