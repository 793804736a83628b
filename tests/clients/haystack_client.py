"""haystack: a chat, a stream, a call, a form."""

import sys

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret

url, model = sys.argv[1:3]
asked = [ChatMessage.from_user("Switch the lamp on.")]
schema = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}


def generator(**kwargs: object) -> OpenAIChatGenerator:
    key = Secret.from_token("none")
    return OpenAIChatGenerator(api_key=key, model=model, api_base_url=f"{url}/v1", max_retries=0, **kwargs)


assert generator(generation_kwargs={"max_tokens": 8}).run(asked)["replies"][0].text
parts: list[str] = []
streamed = generator(generation_kwargs={"max_tokens": 8}, streaming_callback=lambda part: parts.append(part.content))
assert streamed.run(asked)["replies"][0].text == "".join(parts)
switch = Tool(name="switch", description="Switch the lamp.", parameters=schema, function=lambda on: on)
forced = generator(tools=[switch], generation_kwargs={"max_tokens": 64, "tool_choice": "required"})
assert isinstance(forced.run(asked)["replies"][0].tool_calls[0].arguments["on"], bool)
form = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema, "strict": True}}
formed = generator(generation_kwargs={"max_tokens": 64, "response_format": form})
assert '"on"' in formed.run(asked)["replies"][0].text
print("chat, stream, call, form")
