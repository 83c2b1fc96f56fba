from app.http.rate import Rate


def test_a_client_that_neither_sends_nor_reads_is_too_slow():
    rate = Rate(100)
    rate.begin(0.0, received=1000)
    assert not rate.too_slow(4.9, 5, received=1000, left=0)
    assert rate.too_slow(5, 5, received=1499, left=0)


def test_enough_received_bytes_start_a_new_window():
    rate = Rate(100)
    rate.begin(0.0)
    assert not rate.too_slow(5, 5, received=500, left=0)
    assert not rate.too_slow(9, 5, received=500, left=0)
    assert rate.too_slow(10, 5, received=500, left=0)


def test_a_client_that_reads_enough_is_not_too_slow():
    rate = Rate(100)
    rate.begin(0.0, left=10_000)
    assert not rate.too_slow(5, 5, received=0, left=9500)
    assert rate.too_slow(10, 5, received=0, left=9001)


def test_a_drained_buffer_counts_as_read_even_if_it_is_full_again():
    rate = Rate(100)
    rate.begin(0.0, left=1000)
    rate.drained()
    assert not rate.too_slow(5, 5, received=0, left=1000)
    assert rate.too_slow(10, 5, received=0, left=1000)


def test_without_a_minimum_rate_only_a_client_that_reads_nothing_of_its_answer_is_too_slow():
    """MIN_BYTES_PER_S=0 switched SEND_TIMEOUT_MS off."""
    rate = Rate(0)
    rate.begin(0.0)
    assert not rate.too_slow(5, 5, received=0, left=0)
    rate.begin(0.0, left=1000)
    assert not rate.too_slow(5, 5, received=0, left=999)
    assert rate.too_slow(10, 5, received=0, left=999)
