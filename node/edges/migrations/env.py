"""Run by Alembic: the revisions, in the transaction that ``node.edges.database.migrate`` began."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    render_as_batch=True,  # SQLite changes a column by making its table anew
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
