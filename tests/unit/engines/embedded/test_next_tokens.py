"""Next tokens cut to a mass or a number, without sorting the vocabulary."""

import pytest

pytest.importorskip("torch", reason="needs the embedded engine")

import torch

from engines.embedded.items import next_tokens


def rows() -> list[torch.Tensor]:
    """Peaked and flat ones, with ties everywhere."""
    draw = torch.Generator().manual_seed(4)
    sizes = (5, 64, 65, 700, 5000)
    scales = (0.1, 1.0, 6.0)
    logits = [torch.randn(size, generator=draw).mul(scale) for size in sizes for scale in scales]
    return [one.mul(2).round().div(2).log_softmax(0) for one in logits]


@pytest.mark.parametrize("mass", [0.1, 0.8, 0.999, 1.0])
def test_a_nucleus_is_that_of_the_sorted_vocabulary(mass: float) -> None:
    for row in rows():
        order = row.sort(descending=True, stable=True)
        shares = order.values.double().exp()
        before = torch.cat((shares.new_zeros(1), shares.cumsum(0)[:-1]))
        count = int((before < mass).sum()) if mass < 1 else len(row)
        (found,) = next_tokens(row.unsqueeze(0), None, mass, None)
        assert list(found.ids) == order.indices[:count].tolist()
        assert list(found.logps) == order.values[:count].tolist()
        assert found.tail_mass == pytest.approx(1 - float(shares[:count].sum()), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 64, 6000])
def test_the_likeliest_are_the_first_of_the_sorted_vocabulary(count: int) -> None:
    for row in rows():
        order = row.sort(descending=True, stable=True)
        (found,) = next_tokens(row.unsqueeze(0), None, None, count)
        assert list(found.ids) == order.indices[:count].tolist()


@pytest.mark.parametrize(
    ("ids", "mass", "top_k"),
    [
        ((3, 0, 3), None, None),
        ((), None, None),
        (None, 0.9, None),
        (None, 1.0, None),
        (None, None, 2),
    ],
)
def test_rows_together_are_what_each_is_alone(
    ids: tuple[int, ...] | None, mass: float | None, top_k: int | None
) -> None:
    for size in (5, 700, 5000):
        of_size = torch.stack([row for row in rows() if len(row) == size])
        alone = [next_tokens(row.unsqueeze(0), ids, mass, top_k)[0] for row in of_size]
        assert next_tokens(of_size, ids, mass, top_k) == alone
