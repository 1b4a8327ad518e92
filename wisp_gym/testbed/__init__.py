"""A deployment of edge-cloud speculative decoding: real models, real processes, real network (extra `testbed`)."""
