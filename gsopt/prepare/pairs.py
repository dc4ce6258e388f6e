"""Which photos are compared with which."""

MOST_EXHAUSTIVE = 400  # photos: 79,800 pairs
OVERLAP = 10  # COLMAP's sequential matching: the next 10 by name, and those 2, 4, 8, ..., 512 further


def choose_matching(asked: str, photos: int, is_video: bool) -> str:
    """ "exhaustive" or "sequential": what is asked for, or what fits the photos."""
    if asked != "auto":
        return asked
    return "sequential" if is_video or photos > MOST_EXHAUSTIVE else "exhaustive"


def pair_count(matching: str, photos: int) -> int:
    """How many pairs that makes."""
    if matching == "exhaustive":
        return photos * (photos - 1) // 2
    steps = {*range(1, OVERLAP + 1), *(2**power for power in range(OVERLAP))}
    return sum(max(0, photos - step) for step in steps)
