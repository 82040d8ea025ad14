"""Clients that wait are served equal shares of tokens."""

from parctl.runtime.inference.shares import Shares


def test_who_had_fewest_tokens_is_next() -> None:
    shares = Shares()
    shares.arrive("a", set())
    shares.arrive("b", {"a"})
    assert shares.next(["a", "b"]) == "a"
    shares.charge("a", 10)
    assert shares.next(["a", "b"]) == "b"
    shares.charge("b", 11)
    assert shares.next(["a", "b"]) == "a"


def test_a_newcomer_does_not_get_what_it_did_not_ask_for_before() -> None:
    shares = Shares()
    shares.arrive("a", set())
    shares.charge("a", 1000)
    shares.arrive("b", {"a"})
    shares.charge("b", 1)
    assert shares.next(["b", "a"]) == "a"


def test_a_pause_does_not_clear_a_debt() -> None:
    shares = Shares()
    shares.arrive("greedy", set())
    shares.arrive("other", {"greedy"})
    shares.charge("greedy", 500)
    shares.charge("other", 5)
    shares.forget_idle({"other"})
    shares.arrive("greedy", {"other"})
    assert shares.next(["greedy", "other"]) == "other"


def test_idle_clients_are_not_kept_for_ever() -> None:
    shares = Shares()
    for number in range(100):
        shares.arrive(str(number), set())
        shares.charge(str(number), 7)
        shares.forget_idle(set())
    shares.arrive("last", set())
    assert shares.next(["last"]) == "last"
    assert len(shares._tokens) == 1
