"""Model-server replicas with modelled GPUs: the embedded default target, whose truth is known because it is computed.

    profiles.py   published figures of GPUs and models; what fits, how long work takes
    model.py      pure: continuous batching of one replica, driven by anybody's clock; kvcache.py: its KV blocks
    stages.py     pure: what comes before a replica; faults.py: what goes wrong on purpose
    service.py    the replicas at work, watched by metrics.py, telemetry.py and the log in truth.py
    server.py     HTTP over asyncio; openai.py and predict.py make its bytes

Nothing here claims to be a real server: every answer and every telemetry row says that it is simulated.
"""
