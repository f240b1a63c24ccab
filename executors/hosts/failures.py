"""How a call to a host's end of a session can fail, other than by its connection: the answer says so."""

EXECUTION = "execution"
"""At a node."""

ABORTED = "aborted"
"""Because of another host."""

FORGOTTEN = "forgotten"
"""What it needs was let go of, for the client had not been heard of."""

OTHER = "other"
