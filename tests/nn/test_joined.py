from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor

from ganfast.nn.joined import Joined


def parts() -> list[Tensor]:
    return [torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]]), torch.tensor([5.0])]


def test_the_parts_stay_the_same_tensors_and_follow_the_whole() -> None:
    joined, given = Joined(own=True), parts()
    whole = joined.join(given)
    assert whole.tolist() == [1, 2, 3, 4, 5]
    assert [part.tolist() for part in given] == [part.tolist() for part in parts()]
    whole.mul_(10)
    assert [part.tolist() for part in given] == [[10, 20], [[30], [40]], [50]]
    given[1].zero_()
    assert joined.join(given) is whole
    assert whole.tolist() == [10, 20, 0, 0, 50]
    joined.put(torch.arange(5.0))
    assert [part.tolist() for part in given] == [[0, 1], [[2], [3]], [4]]


def test_a_part_that_was_replaced_is_taken_up() -> None:
    joined, given = Joined(own=True), parts()
    joined.join(given)
    for replace in (lambda part: part.double(), lambda part: part.clone()):
        given = [replace(part) for part in given]
        given[0].fill_(7)
        assert joined.join(given).tolist() == [7, 7, 3, 4, 5]
        assert joined.join(given).dtype == given[0].dtype
    given[2].data = torch.tensor([9.0], dtype=given[2].dtype)
    assert joined.join(given).tolist() == [7, 7, 3, 4, 9]
    other = parts()
    assert joined.join(other).tolist() == [1, 2, 3, 4, 5]
    joined.put(torch.zeros(5))
    assert given[0].tolist() == [7, 7]


def test_what_is_not_owned_stays_where_it_is() -> None:
    joined, given = Joined(own=False), parts()
    addresses = [part.data_ptr() for part in given]
    assert joined.join(given).tolist() == [1, 2, 3, 4, 5]
    joined.put(torch.arange(5.0))
    assert [part.tolist() for part in given] == [[0, 1], [[2], [3]], [4]]
    assert [part.data_ptr() for part in given] == addresses


def test_joined_in_inference_mode_they_can_be_written_outside_of_it() -> None:
    joined, given = Joined(own=True), parts()
    with torch.inference_mode():
        joined.join(given)
    joined.put(torch.zeros(5))
    assert not given[0].any()


def test_copies_share_nothing() -> None:
    given = parts()
    joined = Joined(own=True)
    joined.join(given)
    for twin, twins in (copy.deepcopy((joined, given)), pickle.loads(pickle.dumps((joined, given)))):
        twin.join(twins)
        twin.put(torch.zeros(5))
        assert all(not part.any() for part in twins)
    assert joined.join(given).tolist() == [1, 2, 3, 4, 5]
