"""Stories that went wrong once, most of them found by `just soak`, or that one condition alone keeps right."""

Story = list[tuple[str, int, int, int]]

__all__ = ["STORIES", "Story"]


def steps(count: int, *, of: int = 0) -> Story:
    """So many steps of the one that stands at this place among those who are at something."""
    return [("step", of, 0, 0)] * count


# A third of the updates gets no answer. Of these, each draws one number more, and so decides which.
DRAW: Story = [("restore", 1, 0, 0), *steps(2)]

STORIES: dict[str, Story] = {
    # The call is known by its number alone, and is forgotten with the only person who has that number.
    "a number is forgotten with its person": [
        ("deliver", 0, 0, 0), *steps(5), ("open", 0, 0, 1), *steps(2), ("deliver", 0, 0, 0), ("forget", 0, 0, 0),
        *steps(12),
    ],
    # The number finds the voice of one person, then two persons have it, and the same call is opened again.
    "a call that is over is opened again": [
        ("ahead", 0, 4, 1), ("end", 0, 0, 0), *steps(1), ("open", 0, 0, 0), ("ahead", 0, 3, 0), ("open", 0, 0, 0),
    ],
    # Both requests of one name are given up, and both voices come late.
    "a name is used again for another voice": [
        ("deliver", 0, 0, 0), ("ahead", 6, 1, 0), ("step", 1, 2, 0), ("lapse", 0, 0, 0), ("ahead", 0, 3, 0),
        ("lapse", 0, 0, 0), ("step", 1, 3, 0), ("step", 1, 2, 0), ("step", 1, 3, 0),
    ],
    # The agent is read for the second call before it has the voice of the first, whose caller is forgotten.
    "an agent is read while it is updated": [
        ("ahead", 0, 1, 1), *steps(1), ("ahead", 0, 1, 0), ("remove", 0, 0, 0), *steps(1), ("remove", 0, 0, 0),
        ("ahead", 0, 4, 0), ("deliver", 1, 1, 0), ("step", 0, 3, 0), *steps(1), ("step", 0, 3, 0),
        ("step", 0, 4, 0), ("step", 0, 2, 0), ("deliver", 1, 0, 1), ("step", 1, 3, 0), *steps(1),
        ("remove", 0, 0, 0), *steps(1), ("forget", 0, 1, 0), *steps(1), ("step", 0, 2, 0), ("step", 1, 2, 0),
        *steps(1, of=1),
    ],
    # It had failed when the reconciliation read its row; by now an agent has it, and it is given up again.
    "a voice is recorded while it is reconciled": [
        ("deliver", 0, 0, 0), *steps(4), ("lapse", 1, 0, 0), *steps(1), ("wait", 3, 0, 0), ("reconcile", 1, 0, 0),
        *steps(2, of=1), *steps(1), ("deliver", 0, 0, 1), *steps(6, of=2), ("withdraw", 0, 0, 0),
        *steps(2, of=1),
    ],
    # The update of the first call gets no answer, and is done after that of the second.
    "an agent is given to the next call before its last update is done": [
        *DRAW * 2, ("deliver", 0, 0, 0), *steps(9), ("end", 0, 0, 0), ("deliver", 0, 2, 1), *steps(5, of=1),
        ("wait", 1, 1, 0), *steps(4, of=1), *steps(2),
    ],
    # The second call takes the agent over from the first. Its update comes late, gets no answer and is never
    # done, and whoever puts the agent back meanwhile dies: the agent still has what the first call gave it.
    "an update comes late and is never done": [
        ("deliver", 0, 0, 0), *steps(9), *DRAW * 2, ("end", 0, 0, 0), ("deliver", 0, 2, 1), *steps(7),
        ("wait", 1, 0, 0), ("wait", 1, 0, 0), ("close", 1, 0, 0), *steps(3, of=1), ("restore", 1, 0, 0),
        *steps(2, of=1), *steps(2), ("wait", 2, 0, 0),
    ],
    # The voice was found, and its agent is still being read.
    "a consent is withdrawn before the agent is changed": [
        ("ahead", 0, 0, 0), *steps(9), ("deliver", 0, 9, 0), *steps(4), ("withdraw", 0, 0, 0), *steps(1),
    ],
    # Nobody knows whether it was done, and the call does not end.
    "who updates an agent dies": [("deliver", 0, 0, 0), *steps(7), ("kill", 0, 0, 0)],
}  # fmt: skip
