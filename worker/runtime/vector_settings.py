"""The settings of the vector database."""

from dataclasses import dataclass
from pathlib import Path

from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import (
    absolute_path,
    boolean,
    collection_name,
    duration,
    qdrant_url,
    token,
    whole_number,
)


@dataclass(frozen=True, kw_only=True)
class VectorSettings:
    """Fields of ``Settings``."""

    qdrant_url: str = variable(
        "QDRANT_URL",
        qdrant_url,
        "http://localhost:6333",
        "the vector database; the port is 6333 unless the URL names one, as with Qdrant's own clients",
        programs="web knowledge",
    )
    qdrant_api_key: str | None = variable(
        "QDRANT_API_KEY",
        token,
        None,
        "Qdrant's API key; the server that bin/qdrant starts requires it",
        programs="web knowledge qdrant",
        secret=True,
    )

    vector_collection_name: str = variable(
        "VECTOR_COLLECTION_NAME",
        collection_name,
        "bharat_crm_knowledge",
        "the collection of the CRM's AI",
        programs="knowledge",
    )
    knowledge_vector_size: int = variable(
        "KNOWLEDGE_VECTOR_SIZE",
        whole_number(1, 65_535),
        "1536",
        "the length of its vectors; only used when the collection is created",
        programs="knowledge",
    )
    knowledge_snapshot_interval_seconds: float = variable(
        "KNOWLEDGE_SNAPSHOT_INTERVAL",
        duration("h", 1.0),
        "24h",
        "how often a snapshot is taken, counted from midnight UTC",
        programs="knowledge",
    )
    knowledge_snapshot_keep: int = variable(
        "KNOWLEDGE_SNAPSHOT_KEEP",
        whole_number(1, 1000),
        "7",
        "how many of the newest snapshots are kept, in Qdrant and in KNOWLEDGE_SNAPSHOT_DIR",
        programs="knowledge",
    )
    knowledge_snapshot_dir: Path | None = variable(
        "KNOWLEDGE_SNAPSHOT_DIR",
        absolute_path,
        None,
        "a folder that each new snapshot is copied to, best on another disk",
        programs="knowledge",
    )

    qdrant_embedded: bool = variable(
        "QDRANT_EMBEDDED",
        boolean,
        "true",
        "false: Qdrant runs elsewhere, and bin/qdrant ends with status 0",
        programs="qdrant",
    )
    qdrant_bin: Path | None = variable(
        "QDRANT_BIN",
        absolute_path,
        None,
        "the path of Qdrant's program; without it, qdrant is searched in PATH",
        programs="qdrant",
    )
    qdrant_development: bool = variable(
        "QDRANT_DEVELOPMENT",
        boolean,
        "false",
        "true: without Qdrant's program a server for development starts in its place",
        programs="qdrant",
    )
    qdrant_storage_path: Path = variable(
        "QDRANT__STORAGE__STORAGE_PATH", absolute_path, "/qdrant/storage", "Qdrant's data folder", programs="qdrant"
    )
    qdrant_snapshots_path: Path = variable(
        "QDRANT__STORAGE__SNAPSHOTS_PATH",
        absolute_path,
        "/qdrant/snapshots",
        "Qdrant's snapshot folder",
        programs="qdrant",
    )
