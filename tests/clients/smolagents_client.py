"""smolagents: words, and a tool with an argument that may be left out, which has to be called."""

import sys

from smolagents import OpenAIServerModel, tool

url, model = sys.argv[1:3]


@tool
def switch(on: bool, room: str = "hall") -> str:
    """Switch the lamp.

    Args:
        on: whether it is to be on
        room: where it stands
    """
    return f"{on} {room}"


brain = OpenAIServerModel(model_id=model, api_base=f"{url}/v1", api_key="none", max_tokens=96)
asked = [{"role": "user", "content": [{"type": "text", "text": "Switch the lamp in the hall on."}]}]
assert brain.generate(asked, max_tokens=8).content
called = brain.generate(asked, tools_to_call_from=[switch])
assert called.tool_calls, called
assert called.tool_calls[0].function.name == "switch"
print("words, a call with an optional argument")
