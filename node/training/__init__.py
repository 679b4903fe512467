"""Train a model of ``models/`` and measure it: `segnode train` and `segnode evaluate`.

Common to all models is here; what is a model's own (labels, augmentation, sizes) is the recipe in
its folder, ``training.py``. Nothing in the running node imports this package.
"""
