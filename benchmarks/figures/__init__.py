"""Figures of the documents, taken from records: `python -m benchmarks.figures`.

A comment names where the figures of the table or paragraph below it are from:

    <!-- table: quality.models quality-kuairand/2026-11-24T16-11-24-44a8d89 -->
    <!-- figures: training_speed.speeds training_speed/2026-11-24T18-18-08-8879082; given: 3 -->
    <!-- picture: comparison.frontier comparison-movielens_1m/2026-11-27T01-22-40-e153e43 -->

`quality.models` is a function of quality.py in this folder. It gets the records that are named, in
their order, and gives the lines of the table, the figures of the paragraph in the order in which
they stand there, or the picture that is drawn into the SVG file which the paragraph links. Words of
a paragraph are written by hand; `given` lists its numbers that nobody measured, and
`<!-- given: 26 64 -->` alone those of a paragraph without measured ones. Numbers in headings, code
and links are not looked at.

The command draws every picture, writes every table anew and every figure as its record has it,
rounded as before, and says what it changed and what it cannot mend. `--newest NAME ...` names the
newest record of NAME in place of the one that is named. tests/test_figures.py
sees that there is nothing to be changed.
"""
