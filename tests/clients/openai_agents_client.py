"""openai-agents: words, and a tool that the model has to call, by chat completions and by responses."""

import asyncio
import sys

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.agent import StopAtTools
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI

url, model = sys.argv[1:3]
set_tracing_disabled(True)
client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
seen: list[bool] = []


@function_tool
def switch(on: bool) -> str:
    """Switch the lamp."""
    seen.append(on)
    return "done"


async def main() -> None:
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        brain = kind(model=model, openai_client=client)
        whole = ModelSettings(max_tokens=400)  # one that breaks off is an error to it
        said = await Runner.run(Agent(name="a", model=brain, model_settings=whole), "Name a colour.")
        assert said.final_output, kind
        forced = ModelSettings(max_tokens=96, tool_choice="required")
        agent = Agent(
            name="b", model=brain, model_settings=forced, tools=[switch],
            tool_use_behavior=StopAtTools(stop_at_tool_names=["switch"]),
        )  # fmt: skip
        await Runner.run(agent, "Switch the lamp on.")
    assert len(seen) == 2, seen


asyncio.run(main())
print("words and a tool, by chat and by responses")
