"""`python -m agents.branching`: what branches of running worlds cost and tell."""

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m agents.branching",
    "Copies of a running world, which go apart from one decision on.",
    {
        "lookahead": ("agents.branching.lookahead", "what is reached by trying every candidate ahead, again and again"),
        "critic": (
            "agents.branching.noise",
            "a critic of the fleet's value, and how certain it makes a decision's effect",
        ),
        "improve": ("agents.branching.improve", "a policy fitted to what branches say of both actions"),
        "margins": ("agents.branching.margins", "a policy's outputs beside what branches say"),
        "ppo": ("agents.branching.advantages", "a policy trained with the advantages that branches tell"),
        "rollout": ("agents.branching.rollout", "what is reached by trying every decision both ways ahead"),
        "variance": ("agents.branching.variance", "how certain a decision's effect is, by horizon and load"),
        "externality": ("agents.branching.externality", "what one more drafted token costs the others"),
        "server-time": ("agents.branching.server_time", "what a second of the server's time costs the others"),
        "urgency": ("agents.branching.urgency", "how much more time is worth to a device that is behind"),
        "speed": ("agents.branching.speed", "branches a second"),
    },
    default="lookahead",
)

if __name__ == "__main__":
    program(COMMANDS)
