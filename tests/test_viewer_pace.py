"""Which picture a browser gets, and when: small and quick while its camera moves, whole at rest."""

import pytest

from gsopt.viewer.pace import LEAST, MOVING_SECONDS, SHARE, STILL_AFTER, WHILE_MOVING, Pace, fitted

FULL = (800, 400)
REST = STILL_AFTER + 0.01


def moved_to(pace: Pace, now: float, pose: str, cost: float, version: int = 0) -> tuple[int, int]:
    """One picture while the camera moves; its size."""
    size = pace.size(now, pose, version, FULL, share=None)
    assert size is not None
    pace.done(now, pose, version, size, cost)
    return size


@pytest.mark.parametrize(
    ("per_pixel", "share_of_pixels"),
    [
        (1e-8, 1.0),  # quick enough for all
        (MOVING_SECONDS / (FULL[0] * FULL[1] / 4), 1 / 4),
        (MOVING_SECONDS / (FULL[0] * FULL[1] / 9), 1 / 9),
        (1.0, LEAST**2),  # however slow it is, something can be seen
    ],
)
def test_while_it_moves_a_picture_is_as_large_as_can_be_made_in_time(per_pixel, share_of_pixels):
    pace = Pace()
    first = moved_to(pace, 0.0, "a", per_pixel * LEAST**2 * FULL[0] * FULL[1])
    assert first == (LEAST * FULL[0], LEAST * FULL[1])  # nothing is known of the speed yet
    width, height = moved_to(pace, 0.1, "b", 0.0)
    assert width * height == pytest.approx(share_of_pixels * FULL[0] * FULL[1], rel=0.01)
    assert width / height == pytest.approx(FULL[0] / FULL[1], rel=0.02)


def test_at_rest_it_is_refined_once():
    pace = Pace()
    moved_to(pace, 0.0, "a", 1.0)
    assert pace.size(STILL_AFTER / 2, "a", 0, FULL, share=SHARE) is None  # it may go on moving
    assert pace.size(REST, "a", 0, FULL, share=SHARE) == FULL
    pace.done(REST, "a", 0, FULL, 1.0)
    assert pace.size(REST + 1000, "a", 0, FULL, share=None) is None
    assert pace.size(REST + 1000, "a", 0, (400, 400), share=None) == (400, 400)  # the window has changed


def test_a_model_that_trains_is_shown_as_often_as_the_share_allows():
    pace = Pace()
    moved_to(pace, 0.0, "a", 0.3)
    pace.done(1.0, "a", 1, FULL, 0.3)
    wait = 0.3 * (1 / SHARE - 1)  # so that 0.3 s of pictures are that share of the time
    assert pace.size(1.0 + 0.9 * wait, "a", 2, FULL, share=SHARE) is None
    assert pace.size(1.0 + 1.1 * wait, "a", 2, FULL, share=SHARE) == FULL
    assert pace.size(1.0 + 1.1 * wait, "a", 1, FULL, share=SHARE) is None
    assert pace.size(1.0 + REST, "a", 2, FULL, share=None) == FULL  # nothing else wants the processors


def test_training_goes_on_while_the_camera_moves():
    pace = Pace()
    moved_to(pace, 0.0, "a", 0.2)
    wait = 0.2 * (1 / WHILE_MOVING - 1)
    assert pace.size(0.9 * wait, "b", 0, FULL, share=SHARE) is None
    assert pace.size(1.1 * wait, "b", 0, FULL, share=SHARE) is not None


@pytest.mark.parametrize(
    ("window", "longest", "expected"),
    [
        ((1920, 1080), 1024, (1024, 576)),
        ((600, 1200), 300, (150, 300)),
        ((640, 480), 1024, (640, 480)),
        ((0, 0), 1024, (1, 1)),
    ],
)
def test_a_picture_has_the_size_of_the_window_or_less(window, longest, expected):
    assert fitted(*window, longest) == expected
