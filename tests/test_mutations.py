"""The list of changes that tests must notice fits the files and the tests that it names."""

import pytest

from tests.mutate import TOP, changes


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.what)
def test_a_change_fits_the_tree(change):
    text = (TOP / change.file).read_text()
    assert change.applied(text) != text
    for test in change.tests:
        file, *names = test.split("::")
        assert all(name.split("[")[0] in (TOP / file).read_text() for name in names), test
