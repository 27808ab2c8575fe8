"""Chat completions, streamed, each with a prompt of its own. The example to copy: change what `chat` sends."""

from locust import task

from loadgen.endpoints import openai
from loadgen.prompts import synthetic
from loadgen.users import ModelUser


class ChatUser(ModelUser):
    @task
    def chat(self) -> None:
        settings = self.settings
        prompt = synthetic.prompt(self.random, settings.prompt_tokens)
        self.send(
            openai.chat(
                [{"role": "user", "content": prompt}],
                model=self.model,
                max_tokens=settings.output_tokens,
                extra=settings.extra_body,
            )
        )
