"""The CRM's vector database: its server program, its collection and the snapshots of that collection."""
