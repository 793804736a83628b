"""openai: a chat, a stream, a forced call, a form, plain completions."""

import json
import sys

from openai import OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:3]
client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
asked = [{"role": "user", "content": "Name a colour."}]
switch = {
    "name": "switch",
    "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
}


class Colour(BaseModel):
    red: bool


assert client.chat.completions.create(model=model, messages=asked, max_tokens=8).choices[0].message.content
chunks = client.chat.completions.create(model=model, messages=asked, max_tokens=8, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
called = client.chat.completions.create(
    model=model,
    messages=asked,
    max_tokens=64,
    tools=[{"type": "function", "function": switch}],
    tool_choice="required",
    parallel_tool_calls=False,
)
assert isinstance(json.loads(called.choices[0].message.tool_calls[0].function.arguments)["on"], bool)
formed = client.chat.completions.parse(model=model, messages=asked, max_tokens=32, response_format=Colour)
assert isinstance(formed.choices[0].message.parsed, Colour)
assert client.completions.create(model=model, prompt="One, two,", max_tokens=4).choices[0].text
print("chat, stream, call, form, completion")
