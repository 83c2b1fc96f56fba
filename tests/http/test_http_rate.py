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
