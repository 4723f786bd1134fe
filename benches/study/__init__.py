"""The study: recall a byte and a microsecond, ours and the rivals', on data sets of several kinds.

    make study-quick     # minutes, from examples/data alone
    make study-sets      # hours; goes on where it was stopped
    make study-parts     # what each part of ours gives and costs
    make study           # a day: both, `fresh`, and all else that docs/benchmarks.md quotes

``datasets`` gives vectors, ``ours``, ``rivals`` and ``sparse`` make systems of them, ``measures``
judges what the systems find, ``run`` keeps it all in a folder and a result file; ``parts`` changes
ours one choice at a time, and ``fresh`` asks queries that no default was chosen by. What the docs
show of it is rendered by ``benches/_docs_study.py`` and ``benches/_docs_parts.py``.
"""
