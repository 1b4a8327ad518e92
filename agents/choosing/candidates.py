"""The controllers that a choice may take: who drafts, with what and how long, and how the server takes prompts in.

{own} and {head} stand for places among a scenario's server drafts (`wisp_gym.controllers.deployment`).
"""

SERVER = "speculation-v1+aged:30+chunk:96,0.2+admit"  # learned lengths at devices, our rules at the server
LONG, LARGE = "speculation-v1+aged:30+chunk:96,0.1+admit", "speculation-v1+aged:30+chunk:192,0.3+admit"
GAINS = "+by-price:1,1000"  # the server takes sessions that gain there

DEVICES = (SERVER, LONG, f"{LARGE}:0.85", f"{SERVER}+overlap:8,0.4", "aligned+aged:30+chunk:96,0.2+admit")
DECODED = (  # the server takes sessions and drafts nothing for them
    f"{SERVER}{GAINS}", f"{SERVER}+by-price:0.7,1000", f"{SERVER}+by-price:1.4,1000", f"{LARGE}:0.9{GAINS}", f"{LONG}{GAINS}",
)  # fmt: skip
HEADED = (
    *(f"{SERVER}{GAINS}+colocated(k={k},draft={{head}})+dspark" for k in (2, 3, 4, 5)),
    f"{SERVER}{GAINS}+colocated-turbospec(draft={{head}})+dspark",
    f"{LARGE}{GAINS}+colocated(k=3,draft={{head}})+dspark",
    f"{LONG}{GAINS}+colocated(k=3,draft={{head}})+dspark",
    f"{LARGE}:0.85{GAINS}+colocated(k=3,draft={{head}})+dspark",
    f"{LONG}{GAINS}+colocated(k=5,draft={{head}})+dspark",
    f"{SERVER}+by-price:2,1000+colocated(k=3,draft={{head}})+dspark",
    f"{SERVER}{GAINS}+colocated-throughput(draft={{head}})+dspark",
)
MODELLED = (  # the devices' draft model on the server too
    f"{SERVER}{GAINS}+colocated(k=3,draft={{own}})+dspark",
    f"{SERVER}{GAINS}+colocated(k=5,draft={{own}})+dspark",
    f"{SERVER}{GAINS}+colocated(k=3,draft={{own}})",
)
ALONE = ("centralized:0+chunk:96,0.2+admit", "colocated(k=3,draft={head})+dspark+chunk:128,0.25+admit:0.9")

# What carries most devices on time is the order by need more often than what drafts.
NEED = "speculation-v1+fcfs+admit"
CARRYING = (
    SERVER, f"{SERVER}{GAINS}", f"{SERVER}{GAINS}+colocated(k=3,draft={{head}})+dspark", "centralized:0", "centralized:0+admit+pace",
    f"{NEED}+pace", f"{NEED}{GAINS}+pace", f"{NEED}{GAINS}+colocated(k=3,draft={{head}})+dspark+pace",
)  # fmt: skip

# By goal: the most tokens on time, or the most requests within their SLO, hence the most devices that are served well.
GOODPUT, ATTAINMENT = "goodput", "attainment"
CANDIDATES = {GOODPUT: (*DEVICES, *DECODED, *HEADED, *MODELLED, *ALONE), ATTAINMENT: CARRYING}
