"""Processes of vLLM end with the server that started them, also one that was killed."""

import os
import threading
import time

SERVER = "WISP_GYM_VLLM_SERVER"  # environment variable: process id of the server
NAME = "end-with-the-parent"  # of the thread that looks
WATCH_S = 1.0  # between looks whether the parent still lives


def end_with_the_parent() -> None:
    """In a process of vLLM that a server of ours has started: end when its parent is gone."""
    server, parent = os.environ.get(SERVER), os.getppid()
    if server is None or server == str(os.getpid()) or NAME in {thread.name for thread in threading.enumerate()}:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=NAME).start()
