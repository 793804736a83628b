"""pydantic-ai: words, and an output by a tool and by the model's own form."""

import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, model = sys.argv[1:3]
chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
settings = {"max_tokens": 64}


class Colour(BaseModel):
    red: bool


assert Agent(chat).run_sync("Name a colour.", model_settings=settings).output
assert isinstance(Agent(chat, output_type=Colour).run_sync("Name a colour.", model_settings=settings).output, Colour)
native = Agent(chat, output_type=NativeOutput(Colour))
assert isinstance(native.run_sync("Name a colour.", model_settings=settings).output, Colour)
print("words, output by a tool, output by a form")
