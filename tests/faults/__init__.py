"""Trials: a real node and two real PACS, several studies at once, and one thing that goes wrong.

``site`` is the hospital, ``catalogue`` what can go wrong, ``trial`` one go and its verdict.
``test_faults.py`` is the short version of ``bench/faults.py``.
"""
