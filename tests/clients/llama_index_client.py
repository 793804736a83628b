"""llama-index: a chat, a stream, a completion, a forced call."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url, model = sys.argv[1:3]


def switch(on: bool) -> str:
    """Switch the lamp."""
    return str(on)


llm = OpenAILike(
    model=model, api_base=f"{url}/v1", api_key="none", max_tokens=64, max_retries=0, is_chat_model=True,
    is_function_calling_model=True, context_window=1024,
)  # fmt: skip
asked = [ChatMessage(role="user", content="Name a colour.")]
assert llm.chat(asked).message.content
assert "".join(part.delta or "" for part in llm.stream_chat(asked))
plain = OpenAILike(model=model, api_base=f"{url}/v1", api_key="none", max_tokens=8, max_retries=0, is_chat_model=False)
assert plain.complete("The sky is").text
tools = [FunctionTool.from_defaults(switch)]
called = llm.chat_with_tools(tools, user_msg="Switch the lamp on.", tool_required=True)
(call,) = llm.get_tool_calls_from_response(called)[:1]
assert isinstance(call.tool_kwargs["on"], bool)
print("chat, stream, completion, call")
