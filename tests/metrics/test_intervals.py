from genenv.metrics.intervals import interval


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # t_{0.975, 2} = 4.3027, times 1 / sqrt(3)


def test_a_single_value_has_no_interval():
    assert interval([0.25]) == "0.250"
