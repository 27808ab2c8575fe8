"""Plain JSON inference: --method, --url-path and --body-template say what is sent, --header adds headers.

    loadgen run predict --host http://gpu1:8080 --body-template '{"inputs": "{{prompt}}", "seed": {{seed}}}'

{{prompt}} is --prompt-tokens words, {{id}} 32 hex digits, {{seed}} a number that follows from --seed, all of them new
for each request; {{n}} is the request's ordinal in its worker, from 0.
"""

import itertools
import secrets

from locust import task

from loadgen.endpoints import plain
from loadgen.prompts import synthetic
from loadgen.users import ModelUser

_ordinals = itertools.count()


class PredictUser(ModelUser):
    @task
    def predict(self) -> None:
        settings = self.settings
        template = settings.body_template
        body = plain.render(template, self._value_of) if template is not None else b""
        self.send(plain.call(settings.method, settings.url_path, body))

    def _value_of(self, placeholder: str) -> str | int:
        if placeholder == "prompt":
            return synthetic.prompt(self.random, self.settings.prompt_tokens)
        if placeholder == "id":
            return secrets.token_hex(16)
        return self.random.getrandbits(31) if placeholder == "seed" else next(_ordinals)
