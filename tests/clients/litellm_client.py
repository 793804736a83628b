"""litellm: a chat, a stream, a forced call, by OpenAI's route."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
import litellm

url, model = sys.argv[1:3]
asked = [{"role": "user", "content": "Name a colour."}]
to = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none", "messages": asked, "num_retries": 0}
schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
assert litellm.completion(**to, max_tokens=8).choices[0].message.content
assert "".join(part.choices[0].delta.content or "" for part in litellm.completion(**to, max_tokens=8, stream=True))
called = litellm.completion(
    **to,
    max_tokens=64,
    tools=[{"type": "function", "function": {"name": "switch", "parameters": schema}}],
    tool_choice={"type": "function", "function": {"name": "switch"}},
)
assert isinstance(json.loads(called.choices[0].message.tool_calls[0].function.arguments)["on"], bool)
print("chat, stream, call")
