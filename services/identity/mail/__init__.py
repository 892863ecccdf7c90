"""Mail: an outbox in the database, and the conversation with the operator's mail server."""
