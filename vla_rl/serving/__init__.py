"""A policy behind a websocket: messages, server; the client is ``vla_rl.policies.remote``."""
