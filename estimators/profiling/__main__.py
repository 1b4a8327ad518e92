"""`python -m estimators.profiling`: Measure what a batch costs on this machine."""

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m estimators.profiling",
    "Measure what a batch costs on this machine.",
    {
        "gpu": ("estimators.profiling.gpu", "everything that is measured on a GPU, by one command"),
        "batches": ("estimators.profiling.batches", "batch times of a Qwen3-type model over a grid of batches"),
        "host": ("estimators.profiling.host", "what the host does for each verified message, beside the model"),
        "llama": ("estimators.profiling.llama", "batch times of transformers' Llama on a processor"),
    },
)

if __name__ == "__main__":
    program(COMMANDS)
