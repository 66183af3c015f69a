import pytest

from search.steps import seed_of, split_steps


@pytest.mark.parametrize(
    ("text", "delimiters", "steps"),
    [
        ("", ("\n",), ()),
        ("a", ("\n",), ("a",)),
        ("a\nb\n", ("\n",), ("a\n", "b\n")),
        ("a\n\nb", ("\n",), ("a\n\n", "b")),
        ("\n\na\nb", ("\n",), ("\n\na\n", "b")),
        ("\n\n", ("\n",), ("\n\n",)),
        ("a\n\nb\nc", ("\n\n",), ("a\n\n", "b\nc")),
        ("a ки b ки", (" ки",), ("a ки", " b ки")),
        ("a\n\nb\nc", ("\n", "\n\n"), ("a\n\n", "b\n", "c")),
        ("a.b", (), ("a.b",)),
        ("a.b", ("",), ("a.b",)),
    ],
)
def test_split(text: str, delimiters: tuple[str, ...], steps: tuple[str, ...]) -> None:
    assert split_steps(text, delimiters) == steps
    assert "".join(split_steps(text, delimiters)) == text


def test_seeds_depend_on_the_path_alone() -> None:
    assert seed_of(7, (0, 1)) == seed_of(7, (0, 1))
    seeds = {seed_of(run, path) for run in (7, 8) for path in ((), (0,), (0, 1), (1, 0), (10,))}
    assert len(seeds | {seed_of(7, (), "choices")}) == 11
    assert all(0 <= seed < 2**64 for seed in seeds)
