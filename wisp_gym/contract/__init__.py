"""What a controller sees and answers, once, for everybody. Numbers alone, nothing compiled.

`device`: what a device sees when it drafts. `server`, `request`: what the server sees when it composes a batch. `entry`: what an
entry is. `actions`: what may be answered. `ladders`: what a batching policy may choose for a batch. `averages`: weights of running averages.
`python -m wisp_gym.contract` prints the tables, with who owns each number and how old it is.
"""
