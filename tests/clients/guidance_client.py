"""guidance: words and an object, by its model for OpenAI's API; any grammar, by its model for vLLM's."""

import sys

from guidance import assistant, gen, json, models, select, user
from guidance.models.experimental import VLLMModel
from pydantic import BaseModel

url, model = sys.argv[1:3]


class Lamp(BaseModel):
    on: bool


lm = models.OpenAI(model, base_url=f"{url}/v1", api_key="none", max_retries=0, echo=False)
with user():
    asked = lm + "Is the lamp on?"
with assistant():
    said = asked + gen("said", max_tokens=8)
    formed = asked + json("lamp", schema=Lamp, max_tokens=64)
assert said["said"]
assert isinstance(Lamp.model_validate_json(formed["lamp"]).on, bool)

free = VLLMModel(model, base_url=f"{url}/v1", api_key="none", echo=False)
with user():
    free += "Is the lamp on?"
with assistant():
    chosen = free + select(["yes, it is", "no, it is not"], name="chosen")
    # In brackets: what it begins with would be sent as an answer that is to be continued.
    built = free + ("Lamp " + gen("number", regex="[0-9]{2}") + " is " + select(["on", "off"], name="state") + ".")
    typed = free + json("lamp", schema=Lamp)
assert chosen["chosen"] in ("yes, it is", "no, it is not")
assert built["number"].isdecimal()
assert built["state"] in ("on", "off")
assert isinstance(Lamp.model_validate_json(typed["lamp"]).on, bool)
print("words, an object, grammars")
