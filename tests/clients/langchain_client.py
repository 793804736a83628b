"""langchain-openai: a chat, a stream, a forced call, a form, the older completions."""

import sys

from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:3]
to = {"model": model, "base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
chat = ChatOpenAI(**to, max_tokens=48)


class Lamp(BaseModel):
    """Say whether the lamp is on."""

    on: bool


assert chat.invoke("Name a colour.").content
assert "".join(str(part.content) for part in chat.stream("Name a colour."))
called = chat.bind_tools([Lamp], tool_choice="Lamp").invoke("Is the lamp on?")
assert isinstance(called.tool_calls[0]["args"]["on"], bool)
assert isinstance(chat.with_structured_output(Lamp, method="json_schema").invoke("Is the lamp on?"), Lamp)
assert OpenAI(**to, max_tokens=4).invoke("One, two,")
print("chat, stream, call, form, completion")
