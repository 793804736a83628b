"""guidance: words and an object, by its model for OpenAI's API; it does not ask for other grammars that way."""

import sys

from guidance import assistant, gen, json, models, user
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
print("words, an object")
