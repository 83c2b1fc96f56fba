from app.http.rate import Rate


def test_a_client_that_neither_sends_nor_takes_is_too_slow():
    rate = Rate(100)
    rate.begin(0.0, received=1000)
    assert not rate.too_slow(4.9, 5, received=1000, left=0)
    assert rate.too_slow(5, 5, received=1499, left=0)


def test_enough_that_came_in_begins_a_new_look():
    rate = Rate(100)
    rate.begin(0.0)
    assert not rate.too_slow(5, 5, received=500, left=0)
    assert not rate.too_slow(9, 5, received=500, left=0)
    assert rate.too_slow(10, 5, received=500, left=0)


def test_enough_that_was_taken_is_enough():
    rate = Rate(100)
    rate.begin(0.0, left=10_000)
    assert not rate.too_slow(5, 5, received=0, left=9500)
    assert rate.too_slow(10, 5, received=0, left=9001)


def test_a_buffer_that_ran_empty_meanwhile_is_enough_although_it_is_as_full_as_before():
    rate = Rate(100)
    rate.begin(0.0, left=1000)
    rate.drained()
    assert not rate.too_slow(5, 5, received=0, left=1000)
    assert rate.too_slow(10, 5, received=0, left=1000)


def test_without_a_minimum_rate_a_client_that_takes_nothing_of_its_answer_is_too_slow_and_a_slow_body_is_not():
    """MIN_BYTES_PER_S=0 switched SEND_TIMEOUT_MS off."""
    rate = Rate(0)
    rate.begin(0.0)
    assert not rate.too_slow(5, 5, received=0, left=0)
    rate.begin(0.0, left=1000)
    assert not rate.too_slow(5, 5, received=0, left=999)
    assert rate.too_slow(10, 5, received=0, left=999)
