"""Model-server replicas with modelled GPUs: the embedded default target, whose truth is known because it is computed.

    profiles.py   published figures of GPUs and models; what fits, how long work takes
    model.py      pure: continuous batching of one replica, driven by anybody's clock
    server.py     HTTP over asyncio; bytes from openai.py, side views from metrics.py and telemetry.py, log in truth.py

Nothing here claims to be a real server: every answer and every telemetry row says that it is simulated.
"""
