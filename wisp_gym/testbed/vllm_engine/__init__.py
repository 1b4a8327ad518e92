"""The engine on vLLM: the same server, sessions and schedulers, with a model that vLLM runs."""
