"""instructor: an object by a tool, a strict tool and a form."""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:3]
asked = [{"role": "user", "content": "Is the lamp on?"}]


class Lamp(BaseModel):
    on: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)
    made = client.chat.completions.create(
        model=model, messages=asked, max_tokens=64, response_model=Lamp, max_retries=1
    )
    assert isinstance(made, Lamp)
print("objects by tool, strict tool, form")
