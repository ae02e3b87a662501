"""What the warm start is taught from: the choice of its histories."""

import numpy as np

from deeprec.policy.build import _shortened
from deeprec.types import Example


def test_some_lessons_show_a_short_history() -> None:
    generator = np.random.default_rng(0)
    example = Example("u", tuple(f"i{number}" for number in range(30)), "target")
    lengths = [len(_shortened(example, 0.5, generator).history) for _ in range(200)]
    assert 70 < sum(length == 30 for length in lengths) < 130
    assert set(lengths) - {30} == set(range(1, 10))
    assert _shortened(example, 0.9, generator).history[-1] == "i29"
    assert _shortened(Example("u", ("a",), "b"), 1.0, generator).history == ("a",)
