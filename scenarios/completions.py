"""Completions (/v1/completions), streamed, each with a prompt of its own, for models without a chat template."""

from locust import task

from loadgen.endpoints import openai
from loadgen.prompts import synthetic
from loadgen.users import ModelUser


class CompletionsUser(ModelUser):
    @task
    def completions(self) -> None:
        settings = self.settings
        self.send(
            openai.completion(
                synthetic.prompt(self.random, settings.prompt_tokens),
                model=self.model,
                max_tokens=settings.output_tokens,
                extra=settings.extra_body,
            )
        )
