"""The CRM's vector database: its collection and its snapshots."""
