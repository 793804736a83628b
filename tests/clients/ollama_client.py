"""ollama: a chat, a stream, a form, generate."""

import json
import sys

import ollama

url, model = sys.argv[1:3]
client = ollama.Client(host=url)
asked = [{"role": "user", "content": "Name a colour."}]
options = {"num_predict": 32}
form = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}
assert client.chat(model=model, messages=asked, options=options).message.content
assert "".join(
    part.message.content or "" for part in client.chat(model=model, messages=asked, options=options, stream=True)
)
assert isinstance(
    json.loads(client.chat(model=model, messages=asked, options=options, format=form).message.content)["red"], bool
)
assert client.generate(model=model, prompt="Name a colour.", options=options).response
print("chat, stream, form, generate")
