"""Somebody else's program as a model: it reads a folder of DICOM or NIfTI and writes labels.

``model.py`` is what the pipeline sees; ``program.py`` runs a program within its limits, in the
sandbox of ``sandbox.py``; ``nifti.py`` and ``seg.py`` read what it wrote, and ``grid.py`` decides
whether that lies where the series lies. How to use it: docs/foreign-models.md.
"""
