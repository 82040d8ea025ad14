"""Where prompts go, with replicas that remember what they were sent."""

from parctl.runtime.serving.routing import BLOCK, SLACK, PrefixRouter, leading

SHARED = list(range(2 * BLOCK))
OTHER = list(range(1000, 1000 + 2 * BLOCK))


def test_a_prompt_goes_where_its_beginning_is() -> None:
    router = PrefixRouter()
    assert router.choose([*SHARED, 1], {0: 0, 1: 0}) == 0
    assert router.choose([*OTHER, 1], {0: 1, 1: 0}) == 1
    # a little more load does not matter, the beginning does
    assert router.choose([*SHARED, 2], {0: SLACK, 1: 0}) == 0
    assert router.choose([*OTHER, 2], {0: 0, 1: SLACK}) == 1


def test_a_busy_replica_is_left_for_the_least_loaded() -> None:
    router = PrefixRouter()
    assert router.choose(SHARED, {0: 0, 1: 0, 2: 0}) == 0
    assert router.choose(SHARED, {0: SLACK + 1, 1: 3, 2: 0}) == 2
    # and now both have it: the less loaded one is taken
    assert router.choose(SHARED, {0: 2, 1: 0, 2: 1}) == 2


def test_the_longer_beginning_wins() -> None:
    router = PrefixRouter()
    router.choose(SHARED[:BLOCK], {0: 0, 1: 1})
    router.choose(SHARED, {0: SLACK + 2, 1: 0})
    assert router.choose([*SHARED, 9], {0: 0, 1: 2}) == 1


def test_short_prompts_go_to_the_least_loaded() -> None:
    router = PrefixRouter()
    assert router.choose([1, 2], {0: 3, 1: 2}) == 1
    assert router.choose([1, 2], {0: 1, 1: 2}) == 0


def test_what_is_gone_is_forgotten() -> None:
    router = PrefixRouter()
    assert router.choose(SHARED, {0: 0, 1: 1}) == 0
    router.forget(0)
    assert router.choose(SHARED, {0: 1, 1: 0}) == 1


def test_a_block_is_known_by_all_before_it() -> None:
    one, two = leading([*range(BLOCK), *range(BLOCK)]), leading([*range(BLOCK)] * 2 + [5])
    assert one == two and one[0] != one[1]
    assert leading([7, *range(1, BLOCK), *range(BLOCK)])[1] != one[1]
    assert leading(list(range(BLOCK - 1))) == []
