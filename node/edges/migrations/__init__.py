"""The database's schema, revision by revision (Alembic). ``node.edges.database`` applies them.

A change of ``ledger_tables.py`` comes with a file ``versions/vNNNN_what.py``, whose revision is
``vNNNN`` and whose ``down_revision`` is the one before; a test compares what both build. The node
only goes forward: a release that must be undone is undone from the backup of its database.
"""
