"""The seconds of all stages add up to those of the start."""

import time

from rcdist.startup import Startup


def test_stages_follow_one_another() -> None:
    startup = Startup(100.0, (("Ray", 104.0), ("text", 106.5)))
    assert startup.describe() == "start-up 6.5 s: Ray 4.0, text 2.5"


def test_a_stage_ends_when_it_is_marked() -> None:
    startup = Startup(time.time() - 5.0)
    startup.mark("Ray")
    assert startup.describe() == "start-up 5.0 s: Ray 5.0"
