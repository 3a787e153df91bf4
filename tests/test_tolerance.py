import numpy as np
import pytest
from tolerance import assert_close, assert_same_ids

VALUES = np.array([1.0, -200.0, 0.0], dtype=np.float32)


def test_a_few_roundings_pass():
    assert_close("values", VALUES * np.float32(1 + 5e-7), VALUES)
    assert_close("values", VALUES + np.float32(0.003), VALUES)  # small compared with the largest


@pytest.mark.parametrize("wrong", [0.03, -0.03, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", range(3))
def test_one_wrong_number_is_found(position, wrong):
    got = VALUES.copy()
    got[position] += wrong
    with pytest.raises(AssertionError, match=rf"values\[{position}\]: .*1 of 3 numbers are off"):
        assert_close("values", got, VALUES)
    with pytest.raises(AssertionError, match="are off"):
        assert_close("values", VALUES, got)
    assert_close("values", got, VALUES, where=np.arange(3) != position)


def test_equal_infinities_and_nans_do_not_pass():
    for value in (np.inf, np.nan):
        with pytest.raises(AssertionError):
            assert_close("values", np.float32([value]), np.float32([value]))


def test_another_shape_is_not_broadcast():
    with pytest.raises(AssertionError, match="shape"):
        assert_close("values", VALUES[:1], VALUES)


def test_ids_may_first_differ_only_at_a_near_tie():
    assert_same_ids("prompt", [1, 2, 3], [1, 2, 3], [1.0, 1.0, 1.0])
    assert_same_ids("prompt", [1, 5, 6, 7], [1, 2, 3], [1.0, 0.0009, 1.0])
    for got in ([1, 5, 3], [1, 2], [1, 2, 3, 4]):
        with pytest.raises(AssertionError, match="prompt"):
            assert_same_ids("prompt", got, [1, 2, 3], [1.0, 0.002, 0.0])
