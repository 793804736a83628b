"""semantic-kernel: a chat, a stream, a form, a function that has to be called."""

import asyncio
import json
import sys

from openai import AsyncOpenAI
from pydantic import BaseModel
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory, FunctionCallContent
from semantic_kernel.functions import kernel_function

url, model = sys.argv[1:3]
client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
chat = OpenAIChatCompletion(ai_model_id=model, async_client=client)


class Lamp(BaseModel):
    on: bool


class Switches:
    @kernel_function(description="Switch the lamp.")
    def switch(self, on: bool) -> str:
        return str(on)


async def main() -> None:
    asked = ChatHistory()
    asked.add_user_message("Switch the lamp on.")
    short = OpenAIChatPromptExecutionSettings(max_tokens=8)
    said = await chat.get_chat_message_content(asked, short)
    assert said is not None
    assert str(said)
    pieces = [str(piece) async for piece in chat.get_streaming_chat_message_content(asked, short)]
    assert "".join(pieces) == str(said)
    formed = OpenAIChatPromptExecutionSettings(max_tokens=64, response_format=Lamp)
    assert isinstance(Lamp.model_validate_json(str(await chat.get_chat_message_content(asked, formed))).on, bool)
    kernel = Kernel()
    kernel.add_plugin(Switches(), "lamp")
    forced = OpenAIChatPromptExecutionSettings(
        max_tokens=64, function_choice_behavior=FunctionChoiceBehavior.Required(auto_invoke=False)
    )
    called = await chat.get_chat_message_content(asked, forced, kernel=kernel)
    assert called is not None
    (call,) = [item for item in called.items if isinstance(item, FunctionCallContent)][:1]
    assert isinstance(json.loads(str(call.arguments))["on"], bool)


asyncio.run(main())
print("chat, stream, form, call")
