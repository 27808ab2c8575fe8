"""Chat through Ollama's own API (/api/chat), which streams lines of JSON, each request with a prompt of its own."""

from locust import task

from loadgen.endpoints import ollama
from loadgen.prompts import synthetic
from loadgen.users import ModelUser


class OllamaUser(ModelUser):
    @task
    def chat(self) -> None:
        settings = self.settings
        prompt = synthetic.prompt(self.random, settings.prompt_tokens)
        self.send(
            ollama.chat(
                [{"role": "user", "content": prompt}],
                model=self.model,
                max_tokens=settings.output_tokens,
                extra=settings.extra_body,
            )
        )
