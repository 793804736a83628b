"""dspy: words, a form."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
import dspy

url, model = sys.argv[1:3]
lm = dspy.LM(f"openai/{model}", api_base=f"{url}/v1", api_key="none", max_tokens=64, cache=False, num_retries=0)
assert lm("Name a colour.")[0]
schema = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
form = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema, "strict": True}}
(said,) = lm("Is the lamp on?", response_format=form, allowed_openai_params=["response_format"])
assert isinstance(json.loads(said if isinstance(said, str) else said["text"])["on"], bool)
print("words, a form")
