"""Seeded sources of prompts. A prompt differs from every other, unless its source says so: prefix caches would lie."""
